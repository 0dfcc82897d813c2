"""Lists that people sort by a column and filter by owner; both stand in the address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from django.db.models import F, QuerySet
from django.http import HttpRequest

Rows = TypeVar("Rows", bound=QuerySet[Any])


@dataclass(frozen=True, slots=True)
class Listing:
    """How a list is asked for: ``?sort=name`` or, from the other end, ``?sort=-name``; ``?owner=``
    is the name of who made a thing."""

    sort: str  # a column's key, or empty for the usual order
    descending: bool
    owner: str

    @property
    def is_filtered(self) -> bool:
        return bool(self.owner)


def listing(request: HttpRequest, columns: Mapping[str, Any]) -> Listing:
    """What the address asks for. A column that is none of ``columns`` is nothing asked for."""
    sort = request.GET.get("sort", "")
    key = sort.removeprefix("-")
    owner = request.GET.get("owner", "").replace("\0", "").strip()
    return Listing(key if key in columns else "", sort.startswith("-"), owner[:150])


def listed(found: Rows, asked: Listing, columns: Mapping[str, Any]) -> Rows:
    """``found``, filtered and in the order asked for; ``columns``: key -> a field or expression.

    Rows without a value come last whichever way; equals stay in the usual order.
    """
    if asked.owner:
        found = found.filter(created_by__username=asked.owner)
    if not asked.sort:
        return found
    by = columns[asked.sort]
    by = F(by) if isinstance(by, str) else by
    first = by.desc(nulls_last=True) if asked.descending else by.asc(nulls_last=True)
    return found.order_by(first, "-created_at", "pk")
