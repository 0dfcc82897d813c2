"""The texts that pages say in other languages: gathered from the code, and compiled.

    python tools/messages.py          write locale/<language>/LC_MESSAGES/django.po and .mo anew

Needs GNU gettext (apt-get install gettext). tests/platform/test_languages.py fails when this was
forgotten, or when a text has no translation yet.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IGNORED = (
    ".*", "node_modules", "static", "staticfiles", "var", "tests", "benchmarks", "test-artifacts",
    "locale",
)  # fmt: skip


def gather(folder: Path) -> None:
    """Bring ``folder``/<language>/LC_MESSAGES/django.po up to date, and compile them."""
    from django.conf import settings
    from django.core.management import call_command

    settings.LOCALE_PATHS = [folder]
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        languages = [code for code, _ in settings.LANGUAGES if code != settings.LANGUAGE_CODE]
        call_command(
            "makemessages",
            locale=languages,
            ignore_patterns=list(IGNORED),
            extensions=["html", "py"],
            no_location=True,
            no_obsolete=True,
            no_wrap=True,
            verbosity=0,
        )
        for language in languages:
            file = folder / language / "LC_MESSAGES" / "django.po"
            # When it was gathered says nothing, and would make every run a change.
            text = re.sub(r'"POT-Creation-Date: .*\n', "", file.read_text(encoding="utf-8"))
            file.write_text(text, encoding="utf-8")
            os.chdir(folder)
            call_command("compilemessages", locale=[language], verbosity=0)
            os.chdir(ROOT)
    finally:
        os.chdir(before)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "flowml_site.settings")
    import django

    django.setup()
    gather(ROOT / "locale")
