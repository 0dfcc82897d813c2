#!/usr/bin/env python
"""Django's command line, with the embedded services for the commands that need a database."""

import os
import sys
from pathlib import Path

import environ

from flowml_site import embedded

# These need no database, or see to it themselves.
WITHOUT_SERVICES = {
    "",
    "up",
    "demo",
    "help",
    "version",
    "check",
    "collectstatic",
    "compilemessages",
    "diffsettings",
    "doctor",
    "findstatic",
    "makemessages",
    "spectacular",
    "startapp",
    "test",
}


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "flowml_site.settings")
    # As the settings do, but before them: they are read when the services' addresses are known.
    environ.Env.read_env(Path(__file__).resolve().parent / ".env")
    os.environ["FLOWML_VAR"] = str(embedded.var_dir())
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    is_help = command.startswith("-") or {"-h", "--help"} & set(sys.argv[2:])
    try:
        if command in {"up", "demo"} and not is_help:
            embedded.make_secrets(embedded.var_dir())
        elif command not in WITHOUT_SERVICES and not is_help:
            embedded.ensure(embedded.var_dir())
    except embedded.ServiceError as error:
        sys.exit(str(error))
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
