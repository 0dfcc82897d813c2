"""What templates of every app need: icons, state chips, and numbers written for people."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from django import template
from django.templatetags.static import static
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

register = template.Library()
NOTHING = "–"  # shown where there is no value; templates give filters "" for what is not there

# state -> (class of its colour, icon, word). The word stands with every chip, so that neither
# colour nor shape has to be understood.
STATES = {
    "queued": ("waiting", "hourglass", _("Waiting")),
    "ingesting": ("running", "loader-2", _("Being read")),
    "running": ("running", "loader-2", _("Running")),
    "stopping": ("running", "loader-2", _("Stopping")),
    "cancelling": ("running", "loader-2", _("Cancelling")),
    "succeeded": ("succeeded", "circle-check", _("Succeeded")),
    "ready": ("succeeded", "circle-check", _("Ready")),
    "stopped": ("early", "flag", _("Stopped early")),
    "failed": ("failed", "alert-triangle", _("Failed")),
    "lost": ("lost", "refresh", _("Lost its node")),
    "cancelled": ("cancelled", "ban", _("Cancelled")),
    "pending": ("waiting", "hourglass", _("Waiting")),
    "scheduled": ("waiting", "clock", _("Scheduled")),
    "starting": ("running", "loader-2", _("Starting")),
    "preempted": ("lost", "refresh", _("Made room")),
    "halted": ("cancelled", "player-stop", _("Stopped")),
    "works": ("succeeded", "circle-check", _("Works")),
    "fails": ("failed", "alert-triangle", _("Does not work")),
    "skipped": ("early", "flag", _("Skipped")),
    "online": ("succeeded", "circle-check", _("Online")),
    "restarting": ("running", "loader-2", _("Restarting")),
    "draining": ("early", "flag", _("Draining")),
    "offline": ("failed", "alert-triangle", _("Offline")),
    "not_run": ("cancelled", "ban", _("Not run")),
    "expired": ("cancelled", "clock", _("Expired")),
}

ROLES = {
    "numeric": "hash",
    "categorical": "category",
    "text": "file-text",
    "datetime": "calendar",
    "boolean": "toggle-left",
    "identifier": "id",
    "constant": "lock",
    "image": "photo",
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
def state_chip(state: str) -> SafeString:
    usual = ("waiting", "circle-dashed", str(state).capitalize())
    look, shape, word = STATES.get(str(state), usual)
    return format_html('<span class="state state-{}">{}{}</span>', look, icon(shape), word)


@register.inclusion_tag("parts/_sort_head.html", takes_context=True)
def sort_head(context: template.Context, key: str, title: str, kind: str = "") -> dict[str, Any]:
    """The head of a column that sorts its list by ``key``; of a ``kind`` "number" or "date" the
    largest come first. Takes ``asked`` (accounts.listing.Listing) from the page."""
    asked = context["asked"]
    sorted_ = asked.sort == key and ("descending" if asked.descending else "ascending")
    down = not asked.descending if asked.sort == key else bool(kind)
    query = context["request"].GET.copy()
    query.pop("page", None)
    query["sort"] = f"-{key}" if down else key
    return {
        "title": title,
        "number": kind == "number",
        "address": f"?{query.urlencode()}",
        "sorted": sorted_ or "",
    }


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
        words = gettext("just now")
    elif seconds < 86_400:
        words = gettext("%(time)s ago") % {"time": duration(seconds, coarse=True)}
    else:
        words = f"{moment:%-d %b %Y}"
    return format_html(
        '<time datetime="{}" title="{} UTC" data-ago class="nowrap">{}</time>',
        moment.isoformat(timespec="seconds"),
        f"{moment:%Y-%m-%d %H:%M:%S}",
        words,
    )


@register.filter
def duration(seconds: Any, coarse: bool = False) -> str:
    """Seconds as "30 ms", "0.4 s", "4 min 12 s", "3 h 5 min"; coarse: the largest unit only."""
    if not isinstance(seconds, int | float):
        return NOTHING
    if 0 < seconds < 0.095:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0005 else "<1 ms"
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
def size(n: Any) -> str:
    """Bytes as "512 B", "13.2 kB", "1.2 GB" (decimal units)."""
    if not isinstance(n, int | float):
        return NOTHING
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    return ""


@register.filter
def count(n: Any) -> str:
    """A whole number with thousands separated by commas."""
    return f"{n:,.0f}" if isinstance(n, int | float) else NOTHING


@register.filter
def num(value: Any, digits: int = 4) -> str:
    """A number short enough to read: ``digits`` significant ones, no needless zeros or exponent."""
    if value is None or value == "":
        return NOTHING
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
def score(value: Any) -> str:
    """A score to three digits after the point, or four significant ones when above ten."""
    if not isinstance(value, int | float):
        return NOTHING
    return f"{value:.3f}" if abs(value) < 10 else num(float(value), 4)


@register.filter
def percent(share: Any) -> str:
    """A share of one as a percentage; what is there but tiny never reads as nothing."""
    if not isinstance(share, int | float):
        return NOTHING
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    text = f"{share * 100:.1f}".removesuffix(".0")
    return f"{text}%"


@register.simple_tag
def histogram(counts: Sequence[float], label: str) -> SafeString:
    """Bars as one small SVG without a script; ``label`` says in words what it shows."""
    top = max(counts, default=0) or 1
    heights = (max(2.0, 100 * c / top) if c else 0.0 for c in counts)
    bars = ((i * 10, f"{100 - height:.1f}", f"{height:.1f}") for i, height in enumerate(heights))
    return format_html(
        '<svg class="histogram" viewBox="0 0 {} 100" preserveAspectRatio="none" role="img" '
        'aria-label="{}">{}</svg>',
        len(counts) * 10 - 1 if counts else 1,
        label,
        format_html_join("", '<rect x="{}" y="{}" width="9" height="{}"></rect>', bars),
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
