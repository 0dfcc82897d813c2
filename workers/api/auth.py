"""How nodes prove who they are. Their tokens open the node endpoints and nothing else."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.core import signing
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from workers import keys
from workers.models import Worker


@dataclass(frozen=True)
class HeldAttempt:
    """The one attempt of one task that a task token opens."""

    task: UUID
    attempt: int


class NodeAuthentication(BaseAuthentication):
    """``Authorization: Worker <token>`` or ``Authorization: Task <token>``."""

    def authenticate_header(self, request: Request) -> str:
        return "Worker"

    def authenticate(self, request: Request) -> tuple[Any, Any] | None:
        scheme, _, token = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme == "Worker":
            worker = Worker.objects.filter(token_hash=Worker.hash_token(token)).first()
            if worker is None:
                raise AuthenticationFailed("This node's token is void: register again.")
            return None, worker
        if scheme == "Task":
            try:
                return None, HeldAttempt(*keys.read_task_token(token))
            except (signing.BadSignature, ValueError, TypeError):
                raise AuthenticationFailed("This task token is not ours.") from None
        return None


class IsWorker(BasePermission):
    def has_permission(self, request: Request, view: Any) -> bool:
        return isinstance(request.auth, Worker)


class HoldsTask(BasePermission):
    """The token is for the very task in the address."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return isinstance(request.auth, HeldAttempt) and request.auth.task == view.kwargs["task"]
