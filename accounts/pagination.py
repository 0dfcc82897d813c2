from typing import Any

from django.core import paginator
from django.db.models import QuerySet
from rest_framework.pagination import PageNumberPagination


class Paginator(paginator.Paginator):  # type: ignore[type-arg]
    """Django's, but that what a query set adds to its rows (``annotate``) is worked out for the
    rows of the page alone, and not for all that come before it."""

    def _get_page(self, *args: Any, **kwargs: Any) -> "paginator.Page[Any]":
        page = super()._get_page(*args, **kwargs)  # type: ignore[misc]
        rows = page.object_list
        if isinstance(rows, QuerySet) and rows.query.annotations and not rows.query.combinator:
            whole: Any = self.object_list
            page.object_list = whole.filter(pk__in=rows.values("pk"))
        return page


class Page(PageNumberPagination):
    """``page`` and ``page_size`` (50 unless told, 200 at most)."""

    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 200
    django_paginator_class = Paginator
