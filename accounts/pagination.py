from typing import Any

from django.core import paginator
from django.db.models import QuerySet
from django.db.models.sql import Query
from rest_framework.pagination import PageNumberPagination


class Paginator(paginator.Paginator):  # type: ignore[type-arg]
    """Django's, but that what a query set adds to its rows (``annotate``) is worked out for the
    rows of the page alone, and not for all that come before it. A window looks at them all."""

    def _get_page(self, *args: Any, **kwargs: Any) -> "paginator.Page[Any]":
        page = super()._get_page(*args, **kwargs)  # type: ignore[misc]
        rows = page.object_list
        if isinstance(rows, QuerySet) and _of_each_row_alone(rows.query):
            whole: Any = self.object_list
            page.object_list = whole.filter(pk__in=rows.values("pk"))
        return page


def _of_each_row_alone(query: Query) -> bool:
    """Whether something is added to the rows, and none of it needs others of them."""
    added = query.annotations.values()
    windows = any(getattr(one, "contains_over_clause", False) for one in added)
    return bool(added) and not windows and not query.combinator


class Page(PageNumberPagination):
    """``page`` and ``page_size`` (50 unless told, 200 at most)."""

    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 200
    django_paginator_class = Paginator
