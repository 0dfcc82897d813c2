"""What the pages of the operator's console share: tables to look at, and actions that ask first.

An action of the console is one function for one row. It calls what the API calls too, and whatever
that refuses is told row by row; what it did stands in the row's history.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.auth.models import AbstractUser
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from unfold.admin import ModelAdmin

from accounts.errors import FlowError

MOST = 1000  # rows of one action: each takes a transaction of its own
SHOWN = 20  # rows named on the page that asks, and refusals told one by one

Act = Callable[..., Any]


def acts(
    description: str,
    *,
    done: str,
    consequence: str,
    form: type[forms.Form] | None = None,
    permission: str = "act",
) -> Callable[[Act], Act]:
    """Make an admin action of ``method(self, request, row, **values)``, behind a page that asks.

    ``consequence`` is the sentence on that page, ``done`` what is said of a row afterwards, and
    ``values`` are the cleaned values of ``form``, whose fields stand on the page. The method may
    return a text that takes the place of ``done``. ``permission`` names a ``has_…_permission``.
    """

    def decorate(method: Act) -> Act:
        @admin.action(description=description, permissions=[permission])
        @wraps(method)
        def action(
            self: ModelAdmin, request: HttpRequest, rows: QuerySet[Any]
        ) -> HttpResponse | None:
            count = rows.count()
            if count > MOST:
                self.message_user(
                    request, f"Choose at most {MOST:,} at once; these are {count:,}.",
                    messages.ERROR,
                )  # fmt: skip
                return None
            asked = request.POST.get("confirmed") == "yes"
            filled = form(request.POST if asked else None, prefix="with") if form else None
            if not asked or (filled is not None and not filled.is_valid()):
                context = {
                    **self.admin_site.each_context(request),
                    "title": f"{description}?",
                    "opts": self.model._meta,
                    "consequence": consequence,
                    "count": count,
                    "rows": rows[:SHOWN],
                    "more": max(0, count - SHOWN),
                    # By key, even where all were chosen: what is confirmed is what was shown.
                    "keys": list(rows.values_list("pk", flat=True)),
                    "form": filled,
                    "action": method.__name__,
                    "button": description,
                    "checkbox": helpers.ACTION_CHECKBOX_NAME,
                    "back": reverse(
                        f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist"
                    ),
                }
                return TemplateResponse(request, "admin/confirm_action.html", context)
            gone = len(request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)) - count
            if gone > 0:
                self.message_user(
                    request, f"{gone} changed meanwhile and left this list: nothing done there.",
                    messages.WARNING,
                )  # fmt: skip
            values = filled.cleaned_data if filled else {}
            _carry_out(self, request, rows, method, values, done)
            return None

        return action

    return decorate


def _carry_out(
    self: ModelAdmin,
    request: HttpRequest,
    rows: QuerySet[Any],
    method: Act,
    values: dict[str, Any],
    done: str,
) -> None:
    told: list[str] = []
    refused: list[str] = []
    for row in rows:
        name, key = str(row), row.pk
        try:
            said = method(self, request, row, **values)
        except FlowError as refusal:
            refused.append(f"{name}: {refusal.detail}")
            continue
        word = said if isinstance(said, str) else done
        told.append(f"{name}: {word}.")
        row.pk = key  # a deleted row has lost it, and its history stays
        self.log_change(request, row, word)
    if len(told) > SHOWN:
        told = [f"{len(told)} rows: {done}."]
    for text in told:
        self.message_user(request, text, messages.SUCCESS)
    for text in refused[:SHOWN]:
        self.message_user(request, text, messages.ERROR)
    if len(refused) > SHOWN:
        self.message_user(request, f"And {len(refused) - SHOWN} more were refused.", messages.ERROR)


def operator(request: HttpRequest) -> str:
    """The name under which an operator's doing is recorded."""
    assert isinstance(request.user, AbstractUser)
    return request.user.get_username()


def link(to: Model | None, text: str = "") -> str:
    """A link to the console's page of a row; a dash for none."""
    if to is None:
        return "—"
    opts = to._meta
    address = reverse(f"admin:{opts.app_label}_{opts.model_name}_change", args=[to.pk])
    return format_html('<a href="{}">{}</a>', address, text or str(to))


class Acting(ModelAdmin):
    """A table whose actions stand on the page of a single row as well."""

    change_form_outer_before_template = "admin/_row_actions.html"
    show_full_result_count = False

    def _may(self, request: HttpRequest, verb: str) -> bool:
        assert isinstance(request.user, AbstractUser)
        return request.user.has_perm(f"{self.opts.app_label}.{verb}_{self.opts.model_name}")

    def has_act_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "change")

    def has_remove_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "delete")

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        possible = [
            (name, description)
            for _, name, description in self._filter_actions_by_permissions(
                request, self._get_base_actions()
            )
            if name in (self.actions or ())
        ]
        context = {
            "row_actions": possible,
            "row_key": object_id,
            "row_checkbox": helpers.ACTION_CHECKBOX_NAME,
            "row_list": reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist"),
        }
        answer: HttpResponse = super().change_view(
            request, object_id, form_url, {**context, **(extra_context or {})}
        )
        return answer


class ReadOnly(Acting):
    """For rows that a state machine owns: to look at and to act on, never to edit."""

    list_per_page = 50
    list_filter_submit: ClassVar[bool] = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
