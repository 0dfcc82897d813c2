"""What the audit log takes from elsewhere: changes of accounts, and of the operator's console."""

from typing import Any

from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.db.models import Model
from django.db.models.signals import post_save

from accounts.models import User
from accounts.signals import account_changed
from organizations.audit import record, record_account
from organizations.models import Organization

_DONE = {ADDITION: "added", CHANGE: "changed", DELETION: "deleted"}


def connect() -> None:
    account_changed.connect(_account_changed, dispatch_uid="organizations.audit.account")
    post_save.connect(_console_used, sender=LogEntry, dispatch_uid="organizations.audit.console")


def _account_changed(user: User, verb: str, name: str = "", **_: Any) -> None:
    record_account(verb, user, changes={"name": name} if name else None)


def _console_used(instance: LogEntry, created: bool, **_: Any) -> None:
    """An operator changed something by a form of the console."""
    if not created or instance.content_type is None:
        return
    kind = instance.content_type.model_class()
    obj: Model | None = None
    if kind is not None and instance.action_flag != DELETION:
        obj = kind._default_manager.filter(pk=instance.object_id).first()
    home = obj if isinstance(obj, Organization) else getattr(obj, "organization", None)
    record(
        f"console.{_DONE.get(instance.action_flag, 'changed')}",
        obj,
        organization=home,
        by=instance.user,
        name=f"{instance.content_type.name} {instance.object_repr}"[:200],
        changes={"what": instance.get_change_message()},
    )
