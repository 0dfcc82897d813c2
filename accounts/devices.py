"""A browser's or a program's description of itself, in words for people."""

import re

# The first that fits: nearly every browser calls itself Safari too, and most Mozilla.
_PROGRAMS = (
    ("Edg", "Edge"),
    ("OPR", "Opera"),
    ("SamsungBrowser", "Samsung Internet"),
    ("Firefox", "Firefox"),
    ("FxiOS", "Firefox"),
    ("HeadlessChrome", "Chrome"),
    ("Chrome", "Chrome"),
    ("CriOS", "Chrome"),
    ("Safari", "Safari"),
)
_SYSTEMS = (
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
)


def name_of(agent: str) -> str:
    """ "Firefox on Linux" for a browser, "curl 8.5.0" for a program, from its User-Agent."""
    if not agent:
        return "Unknown device"
    if agent.startswith("Mozilla/"):
        program = next((name for mark, name in _PROGRAMS if f"{mark}/" in agent), "A browser")
        system = next((name for mark, name in _SYSTEMS if mark in agent), "")
        return f"{program} on {system}" if system else program
    found = re.match(r"([A-Za-z][\w.-]{0,40})(?:/([\w.]{1,20}))?", agent)
    return " ".join(part for part in found.groups() if part) if found else "Unknown device"
