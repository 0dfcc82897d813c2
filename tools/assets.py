"""Copy the front-end files that pages load from ``node_modules/`` to ``static/vendor/``.

Run after ``npm ci``. Only the files named here reach a browser, so that a page never loads a
package by accident; ``static/vendor/`` is ignored by git and can be made again at any time.
Licences travel with the files that they cover.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# file in node_modules -> name in static/vendor. The version is part of no name: collectstatic
# adds a content hash in production.
FILES = {
    "@tabler/core/dist/css/tabler.min.css": "tabler/tabler.min.css",
    "htmx.org/dist/htmx.min.js": "htmx/htmx.min.js",
    "htmx.org/LICENSE": "htmx/LICENSE",
    # The "common" bundle holds line, bar and scatter charts and the SVG renderer, a third
    # smaller than the whole.
    "echarts/dist/echarts.common.min.js": "echarts/echarts.min.js",
    "echarts/LICENSE": "echarts/LICENSE",
    "echarts/NOTICE": "echarts/NOTICE",
}


def without_source_map(text: str) -> str:
    """Drop the comment that points to a source map: the map is not shipped, and a manifest
    storage refuses a file that names one that is missing."""
    kept = [line for line in text.splitlines() if "sourceMappingURL=" not in line]
    return "\n".join(kept) + "\n"


def copy(modules: Path, vendor: Path) -> list[str]:
    """Copy FILES from ``modules`` to ``vendor`` (made afresh). Returns what was missing; then
    ``vendor`` is left as it was."""
    missing = [source for source in FILES if not (modules / source).is_file()]
    if missing:
        return missing
    fresh = vendor.with_name(vendor.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    for source, target in FILES.items():
        path = fresh / target
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in {".css", ".js"}:
            text = (modules / source).read_text(encoding="utf-8")
            path.write_text(without_source_map(text), encoding="utf-8")
        else:
            shutil.copyfile(modules / source, path)
    shutil.rmtree(vendor, ignore_errors=True)
    fresh.rename(vendor)
    return []


def main() -> int:
    missing = copy(ROOT / "node_modules", ROOT / "static" / "vendor")
    if missing:
        print("assets: run `npm ci` first; node_modules lacks " + ", ".join(missing))
        return 1
    print(f"assets: {len(FILES)} files in static/vendor")
    return 0


if __name__ == "__main__":
    sys.exit(main())
