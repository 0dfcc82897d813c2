"""Shapes of organizations in JSON. Roles are words here and numbers inside."""

from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from organizations import invites
from organizations.models import (
    AuditEntry,
    Membership,
    OrganizationExport,
    Role,
    ServiceToken,
)


@extend_schema_field({"type": "string", "enum": list(Role.labels)})
class RoleField(serializers.ChoiceField):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(choices=[(label, label) for label in Role.labels], **kwargs)

    def to_representation(self, value: Any) -> str:
        return str(Role(value).label)

    def to_internal_value(self, data: Any) -> Any:
        word = super().to_internal_value(data)
        return next(role for role in Role if role.label == word)


class OrganizationName(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=120)


class OrganizationOut(serializers.Serializer[Membership]):
    """An organization, seen by a member."""

    id = serializers.UUIDField(source="organization_id")
    name = serializers.CharField(source="organization.name")
    role = RoleField(help_text="Your role in it.")
    joined_at = serializers.DateTimeField()
    created_at = serializers.DateTimeField(source="organization.created_at")
    delete_after = serializers.DateTimeField(
        source="organization.delete_after", allow_null=True, help_text="When its deletion is asked."
    )


class Member(serializers.Serializer[Membership]):
    user = serializers.UUIDField(source="user_id")
    username = serializers.CharField(source="user.username")
    email = serializers.EmailField(source="user.email")
    role = RoleField()
    joined_at = serializers.DateTimeField()


class RoleChange(serializers.Serializer[Any]):
    role = RoleField()


class Transfer(serializers.Serializer[Any]):
    user = serializers.UUIDField(help_text="The member who becomes admin in your place.")


class InviteOut(serializers.Serializer[Any]):
    code = serializers.CharField()
    url = serializers.SerializerMethodField(help_text="A page that joins by the code.")
    role = RoleField(help_text="What those who join become.")
    expires_at = serializers.DateTimeField(allow_null=True)
    max_uses = serializers.IntegerField(allow_null=True)
    uses = serializers.IntegerField()
    problem = serializers.CharField(help_text="Empty, or why it opens nothing: expired, used-up.")
    created_at = serializers.DateTimeField()

    def get_url(self, invite: Any) -> str:
        from organizations.views import join_link

        return join_link(invite)


class InviteWish(serializers.Serializer[Any]):
    role = RoleField(default=Role.VIEWER)
    valid_days = serializers.IntegerField(
        default=invites.DAYS, allow_null=True, min_value=1, max_value=invites.MOST_DAYS,
        help_text="Null: until it is withdrawn.",
    )  # fmt: skip
    max_uses = serializers.IntegerField(
        default=None, allow_null=True, min_value=1, max_value=invites.MOST_USES,
        help_text="Null: for any number of people.",
    )  # fmt: skip


class Join(serializers.Serializer[Any]):
    code = serializers.CharField(max_length=64)


class AuditLine(serializers.ModelSerializer[AuditEntry]):
    class Meta:
        model = AuditEntry
        fields: ClassVar = [
            "id", "created_at", "actor", "actor_kind", "actor_id", "via", "verb", "object_kind",
            "object_id", "object_name", "changes", "address", "request_id",
        ]  # fmt: skip


class QuotaOut(serializers.Serializer[Any]):
    quota = serializers.CharField()
    title = serializers.CharField()
    unit = serializers.CharField(help_text="count, bytes or hours.")
    used = serializers.FloatField(allow_null=True)
    limit = serializers.FloatField(allow_null=True, help_text="Null: none.")
    share = serializers.FloatField(allow_null=True, help_text="0 to 1.")
    resets_at = serializers.DateTimeField(allow_null=True)
    frees = serializers.CharField(help_text="What makes room.")


class UsedInMonth(serializers.Serializer[Any]):
    month = serializers.DateField()
    cpu_hours = serializers.FloatField()
    gpu_hours = serializers.FloatField()
    tasks = serializers.IntegerField()
    storage_bytes = serializers.IntegerField(help_text="The most on any day.")


class UsedOnDay(serializers.Serializer[Any]):
    day = serializers.DateField()
    cpu_hours = serializers.FloatField()
    gpu_hours = serializers.FloatField()
    tasks = serializers.IntegerField()


class UsageOut(serializers.Serializer[Any]):
    quotas = QuotaOut(many=True)
    months = UsedInMonth(many=True, help_text="The last twelve, oldest first.")
    days = UsedOnDay(many=True, help_text="The last thirty, oldest first.")


class ServiceTokenOut(serializers.ModelSerializer[ServiceToken]):
    class Meta:
        model = ServiceToken
        fields: ClassVar = [
            "id", "name", "actions", "only_kind", "only_id", "only_name", "hint", "made_by",
            "created_at", "expires_at", "last_used_at", "last_used_from",
        ]  # fmt: skip


class MadeServiceToken(ServiceTokenOut):
    token = serializers.CharField(source="secret", help_text="The secret. It is shown this once.")

    class Meta(ServiceTokenOut.Meta):
        fields: ClassVar = [*ServiceTokenOut.Meta.fields, "token"]


class ServiceTokenWish(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=80)
    actions = serializers.ChoiceField(
        choices=ServiceToken.Actions.choices, default=ServiceToken.Actions.PREDICT
    )
    model = serializers.UUIDField(
        default=None, allow_null=True, help_text="Only this one; with actions predict."
    )
    deployment = serializers.UUIDField(
        default=None, allow_null=True, help_text="Only this one; with actions predict."
    )
    expires_in_days = serializers.IntegerField(
        default=365, allow_null=True, min_value=1, max_value=3650, help_text="Null: never."
    )


class ExportOut(serializers.ModelSerializer[OrganizationExport]):
    # By hand: a choice field called state would be one more enum of that name in the schema.
    state = serializers.CharField(help_text="queued, running, ready, failed or expired.")

    class Meta:
        model = OrganizationExport
        fields: ClassVar = [
            "id", "state", "size", "error", "asked_by", "created_at", "finished_at", "expires_at",
        ]  # fmt: skip
