from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.http import HttpRequest
from django_otp.plugins.otp_totp.models import TOTPDevice
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from accounts.actions import revoke_token
from accounts.console import Acting, acts
from accounts.models import BrowserSession, PersonalToken, RecoveryCode, TokenFamily, User


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "is_staff", "is_active", "last_login", "date_joined")
    list_filter = ("is_staff", "is_active")
    search_fields = ("username", "email")
    ordering = ("username",)
    add_fieldsets = (
        (None, {"classes": ("wide",), "fields": ("username", "email", "password1", "password2")}),
    )


class Shown(ModelAdmin):
    """What operators may look at, and end, but not make or edit."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(PersonalToken)
class PersonalTokenAdmin(Shown, Acting):
    list_display = (
        "name",
        "user",
        "scope",
        "created_at",
        "expires_at",
        "last_used_at",
        "revoked_at",
    )
    list_filter = ("scope",)
    list_select_related = ("user",)
    search_fields = ("name", "user__username", "user__email")
    exclude = ("digest",)
    actions = ("revoke",)

    @acts("Revoke", done="is revoked", consequence="Programs that use it are refused at once.")
    def revoke(self, request: HttpRequest, token: PersonalToken) -> None:
        revoke_token(token, request=request)


@admin.register(BrowserSession)
class BrowserSessionAdmin(Shown):
    """Deleting one signs it out."""

    list_display = ("device_name", "user", "address", "created_at", "last_seen_at", "expire_date")
    list_select_related = ("user",)
    search_fields = ("user__username", "user__email", "address")
    fields = ("user", "device", "address", "created_at", "last_seen_at", "expire_date")


@admin.register(TokenFamily)
class TokenFamilyAdmin(Shown):
    """Deleting one ends its access and refresh tokens."""

    list_display = ("device_name", "user", "address", "created_at", "last_seen_at", "expires_at")
    list_select_related = ("user",)
    search_fields = ("user__username", "user__email", "address")
    fields = ("user", "device", "address", "created_at", "last_seen_at", "expires_at")


@admin.register(RecoveryCode)
class RecoveryCodeAdmin(Shown):
    list_display = ("user", "used_at")
    list_select_related = ("user",)
    search_fields = ("user__username", "user__email")
    fields = ("user", "used_at")


admin.site.unregister(TOTPDevice)  # the library's page shows the secret


@admin.register(TOTPDevice)
class SecondFactorAdmin(Shown):
    """Deleting one lets a person who has lost the phone sign in by password alone."""

    list_display = ("user", "confirmed", "created_at", "last_used_at", "throttling_failure_count")
    list_select_related = ("user",)
    search_fields = ("user__username", "user__email")
    fields = ("user", "confirmed", "created_at", "last_used_at", "throttling_failure_count")
