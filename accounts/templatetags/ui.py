"""What templates of every app need: icons, state chips, and numbers written for people."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from django import template
from django.templatetags.static import static
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

register = template.Library()

# state -> (class of its colour, icon). The word comes with the state, so that neither colour nor
# shape has to be understood.
STATES = {
    "queued": ("waiting", "hourglass"),
    "waiting": ("waiting", "hourglass"),
    "uploaded": ("waiting", "hourglass"),
    "pending": ("waiting", "hourglass"),
    "running": ("running", "loader-2"),
    "ingesting": ("running", "loader-2"),
    "scoring": ("running", "loader-2"),
    "stopping": ("running", "loader-2"),
    "cancelling": ("running", "loader-2"),
    "succeeded": ("succeeded", "circle-check"),
    "ready": ("succeeded", "circle-check"),
    "stopped": ("early", "flag"),
    "early": ("early", "flag"),
    "failed": ("failed", "alert-triangle"),
    "lost": ("lost", "refresh"),
    "cancelled": ("cancelled", "ban"),
}

ROLES = {
    "numeric": "hash",
    "categorical": "category",
    "text": "file-text",
    "datetime": "calendar",
    "boolean": "toggle-left",
    "identifier": "id",
    "constant": "lock",
}


@register.simple_tag
def icon(name: str, extra: str = "") -> SafeString:
    """A picture from static/img/icons.svg, hidden from screen readers: words stand beside it."""
    return format_html(
        '<svg class="icon {}" aria-hidden="true"><use href="{}#{}"></use></svg>',
        extra,
        static("img/icons.svg"),
        name,
    )


@register.simple_tag
def state_chip(state: str, word: str = "") -> SafeString:
    look, shape = STATES.get(str(state), ("waiting", "circle-dashed"))
    return format_html(
        '<span class="state state-{}">{}{}</span>',
        look,
        icon(shape),
        word or str(state).replace("_", " ").capitalize(),
    )


@register.filter
def role_icon(role: str) -> str:
    return ROLES.get(role, "hash")


@register.simple_tag
def ago(moment: datetime | None) -> SafeString:
    """A past time as "3 min ago", with the full time in its title; the page keeps it current."""
    if moment is None:
        return mark_safe("")
    moment = moment.astimezone(UTC)
    seconds = (timezone.now() - moment).total_seconds()
    if seconds < 10:
        words = "just now"
    elif seconds < 86_400:
        words = f"{duration(seconds, coarse=True)} ago"
    else:
        words = f"{moment:%-d %b %Y}"
    return format_html(
        '<time datetime="{}" title="{} UTC" data-ago class="nowrap">{}</time>',
        moment.isoformat(timespec="seconds"),
        f"{moment:%Y-%m-%d %H:%M:%S}",
        words,
    )


@register.filter
def duration(seconds: float | None, coarse: bool = False) -> str:
    """Seconds as "0.4 s", "42 s", "4 min 12 s", "3 h 5 min"; coarse gives the largest unit only."""
    if seconds is None:
        return "–"
    if seconds < 10 and not coarse and seconds != round(seconds):
        return f"{seconds:.1f} s"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        rest = "" if coarse or not whole % 60 else f" {whole % 60} s"
        return f"{whole // 60} min{rest}"
    rest = "" if coarse or not whole % 3600 // 60 else f" {whole % 3600 // 60} min"
    return f"{whole // 3600} h{rest}"


@register.filter
def size(n: float | None) -> str:
    """Bytes as "512 B", "13.2 kB", "1.2 GB" (decimal units)."""
    if n is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    return ""


@register.filter
def count(n: float | None) -> str:
    """A whole number with thousands separated by commas."""
    return "–" if n is None else f"{n:,.0f}"


@register.filter
def num(value: Any, digits: int = 4) -> str:
    """A number short enough to read: ``digits`` significant ones, no needless zeros or exponent."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if value != 0 and (abs(value) < 1e-4 or abs(value) >= 1e9):
        return f"{value:.{digits - 1}e}"
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    text = f"{value:,.{max(0, places)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@register.filter
def score(value: float | None) -> str:
    """A score to three digits after the point, or three significant ones when above ten."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else num(float(value), 4)


@register.filter
def percent(share: float | None) -> str:
    """A share of one as a percentage; what is there but tiny never reads as nothing."""
    if share is None:
        return "–"
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    text = f"{share * 100:.1f}".removesuffix(".0")
    return f"{text}%"


@register.filter
def part(value: float | None, whole: float | None) -> float:
    """value / whole, 0 when that has no sense."""
    return value / whole if value and whole else 0.0


@register.filter
def get(mapping: Mapping[str, Any] | None, key: str) -> Any:
    return (mapping or {}).get(key)


@register.simple_tag
def histogram(counts: Sequence[float], label: str) -> SafeString:
    """Bars as one small SVG without a script; ``label`` says in words what it shows."""
    top = max(counts, default=0) or 1
    bars = (
        (i * 10, 100 - height, height)
        for i, height in enumerate(max(2.0, 100 * c / top) if c else 0 for c in counts)
    )
    return format_html(
        '<svg class="histogram" viewBox="0 0 {} 100" preserveAspectRatio="none" role="img" '
        'aria-label="{}">{}</svg>',
        len(counts) * 10 - 1 if counts else 1,
        label,
        format_html_join("", '<rect x="{}" y="{:.1f}" width="9" height="{:.1f}"></rect>', bars),
    )


@register.simple_tag
def share_bar(share: float | None) -> SafeString:
    """A thin bar of ``share`` (0 to 1); the number stands beside it as text."""
    width = 100 * min(1.0, max(0.0, share or 0.0))
    return format_html(
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="10"></rect>'
        '<rect width="{}" height="10"></rect></svg>',
        f"{width:.1f}",
    )
