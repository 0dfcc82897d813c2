from typing import Any

from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin, TabularInline

from accounts.console import acts, operator
from organizations import deletion, service
from organizations.models import (
    AuditEntry,
    Invite,
    Membership,
    Organization,
    OrganizationExport,
    ServiceToken,
    UsageEntry,
    UsageMonth,
)


class MembershipInline(TabularInline):
    model = Membership
    extra = 0
    autocomplete_fields = ("user",)


@admin.register(Organization)
class OrganizationAdmin(ModelAdmin):
    list_display = (
        "name", "members", "max_concurrent_jobs", "max_storage_bytes", "max_cpu_hours",
        "max_gpu_hours", "delete_after", "created_at",
    )  # fmt: skip
    list_filter = (("delete_after", admin.EmptyFieldListFilter),)
    readonly_fields = ("delete_after",)
    actions = ("close", "restore")
    search_fields = ("name", "memberships__user__username", "memberships__user__email")
    inlines = (MembershipInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Organization]:
        return super().get_queryset(request).annotate(member_count=Count("memberships"))

    @admin.display(ordering="member_count")
    def members(self, organization: Any) -> int:
        return int(organization.member_count)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # its files and its days of grace: that is what the actions are for

    def has_act_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("organizations.delete_organization"))

    @acts(
        "Delete after the days of grace",
        done="is closed",
        consequence="All that runs there is cancelled and nobody gets in any more. Until the days "
        "of grace are over it can be restored; then rows and files go for good.",
    )
    def close(self, request: HttpRequest, organization: Organization) -> None:
        deletion.ask(operator(request), organization, name=organization.name)

    @acts("Restore", done="is restored", consequence="It opens again, as it was.")
    def restore(self, request: HttpRequest, organization: Organization) -> None:
        deletion.restore(operator(request), organization)


class ReadOnly(ModelAdmin):
    """To look at, never to edit."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Invite)
class InviteAdmin(ReadOnly):
    """Which codes are about; the codes themselves are the organizations' matter."""

    list_display = (
        "organization", "role", "uses", "max_uses", "expires_at", "withdrawn_at", "created_by",
        "created_at",
    )  # fmt: skip
    list_filter = ("role", ("withdrawn_at", admin.EmptyFieldListFilter))
    list_select_related = ("organization", "created_by")
    search_fields = ("organization__name", "created_by__username")
    exclude = ("code_hash",)


@admin.register(ServiceToken)
class ServiceTokenAdmin(ReadOnly):
    list_display = (
        "name", "organization", "actions", "only_name", "hint", "made_by", "created_at",
        "expires_at", "last_used_at", "revoked_at",
    )  # fmt: skip
    list_filter = ("actions", ("revoked_at", admin.EmptyFieldListFilter))
    list_select_related = ("organization",)
    search_fields = ("name", "hint", "organization__name", "made_by")
    actions = ("revoke",)

    def has_act_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("organizations.change_servicetoken"))

    @acts("Revoke", done="is revoked", consequence="Programs that use it are refused at once.")
    def revoke(self, request: HttpRequest, token: ServiceToken) -> None:
        service.revoke_token(token)


@admin.register(OrganizationExport)
class OrganizationExportAdmin(ReadOnly):
    list_display = (
        "created_at", "organization", "state", "asked_by", "size", "tries", "finished_at",
        "expires_at",
    )  # fmt: skip
    list_filter = ("state",)
    list_select_related = ("organization",)
    search_fields = ("organization__name", "error")


@admin.register(UsageMonth)
class UsageMonthAdmin(ReadOnly):
    list_display = ("month", "organization", "cpu_hours", "gpu_hours", "tasks", "storage_bytes")
    list_select_related = ("organization",)
    search_fields = ("organization__name",)
    date_hierarchy = "month"

    @admin.display(ordering="cpu_s")
    def cpu_hours(self, month: UsageMonth) -> float:
        return round(month.cpu_s / 3600, 2)

    @admin.display(ordering="gpu_s")
    def gpu_hours(self, month: UsageMonth) -> float:
        return round(month.gpu_s / 3600, 2)


@admin.register(UsageEntry)
class UsageEntryAdmin(ReadOnly):
    list_display = (
        "ended_at", "organization", "kind", "task", "attempt", "cpu_s", "gpu_s", "wall_s",
    )  # fmt: skip
    list_filter = ("kind",)
    list_select_related = ("organization",)
    search_fields = ("task", "organization__name")
    date_hierarchy = "ended_at"
    show_full_result_count = False


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnly):
    """The database itself refuses changes."""

    list_display = (
        "created_at", "organization", "actor", "actor_kind", "via", "verb", "object_name",
        "address",
    )  # fmt: skip
    list_filter = ("verb", "actor_kind", "object_kind")
    list_select_related = ("organization",)
    search_fields = ("actor", "object_name", "object_id", "request_id", "organization__name")
    date_hierarchy = "created_at"
    show_full_result_count = False
