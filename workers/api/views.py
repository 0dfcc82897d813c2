"""The node endpoints: nodes dial in, speak for themselves or for one attempt of one task."""

from io import BytesIO
from typing import IO, Any, ClassVar, cast
from uuid import UUID

from django.conf import settings
from django.http import HttpResponseBase
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework.exceptions import NotAuthenticated
from rest_framework.fields import CharField
from rest_framework.parsers import BaseParser
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import credentials
from accounts.errors import Invalid
from accounts.parsers import MendingJSONParser
from organizations.api.base import OrgAPIView
from organizations.models import Role
from workers import actions, broker, confidential, joining, keys, live, longpoll
from workers.api import serializers as said
from workers.api.auth import HeldAttempt, HoldsTask, IsWorker, NodeAuthentication
from workers.fairshare import Room
from workers.files import CHECKPOINT, file_response, forget_checkpoints, refuse_upload
from workers.models import Artifact, Task, Worker

MAX_NAME = 200


def _read(serializer: type[Any], request: Request) -> dict[str, Any]:
    form = serializer(data=request.data)
    form.is_valid(raise_exception=True)
    return dict(form.validated_data)


class NodeView(APIView):
    authentication_classes = (NodeAuthentication,)
    permission_classes: Any = (IsWorker,)
    parser_classes: Any = (MendingJSONParser,)
    schema = None  # the protocol of nodes is FlowML's own matter; docs/node-protocol.md tells it

    @property
    def node(self) -> Any:
        """The Worker that speaks; IsWorker has made sure that it is one."""
        return self.request.auth


class RegisterView(NodeView):
    permission_classes = (AllowAny,)

    def post(self, request: Request) -> Response:
        """A machine joins with a join token and gets a token of its own, shown once.

        A node that has joined before shows its own instead, and gets a new one.
        """
        asked = _read(said.Registration, request)
        joining.check_protocol(asked["protocol"], asked["version"])
        told = {
            "version": asked["version"],
            "capabilities": asked["capabilities"],
            "address": asked["address"] or "",
            "concurrency": asked["concurrency"],
            "classes": asked["queues"],
        }
        if isinstance(request.auth, Worker):
            worker, token = joining.join_again(request.auth, **told)
        else:
            worker, token = joining.join(asked["join_token"], name=asked["name"], **told)
        # A node of one organization gets no password of the broker at all, and long-polls.
        broker_url = None
        if asked["poll"]:
            broker.leave(worker)
        else:
            broker_url = broker.admit(worker, caller=request.META.get("REMOTE_ADDR"))
        return Response(
            {
                "worker_id": str(worker.pk),
                "token": token,
                "organization": str(worker.organization_id or ""),
                "heartbeat_s": settings.HEARTBEAT_S,
                "claim_wait_s": longpoll.MAX_S,
                "lease_s": settings.LEASE_S,
                "queues": worker.queues,
                "concurrency": worker.concurrency,
                "broker_url": broker_url,
                "signing_key": keys.public_key(),
            },
            201,
        )


class ClaimView(NodeView):
    def post(self, request: Request) -> Response:
        left = _read(said.Claim, request)["room"]
        gpus = left.pop("gpus")
        if gpus is None:
            gpus = Room.of_empty(self.node.capabilities, 1).gpus
        room = Room(**left, gpus=tuple(gpus))
        task = actions.claim(self.node, room)
        if task is None:
            return Response(status=204, headers={longpoll.QUEUES: ",".join(self.node.queues)})
        return Response({**actions.claim_answer(task), **confidential.of(task)})


class TaskView(NodeView):
    permission_classes = (HoldsTask,)

    def attempt(self, spoken: int | None = None) -> int:
        """The token's attempt. Raises Invalid where the body names another."""
        held: Any = self.request.auth
        attempt = held.attempt
        if spoken is not None and spoken != attempt:
            raise Invalid("The attempt in the body is not the token's.")
        return int(attempt)


def _events(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        event | {"files": {name: str(pk) for name, pk in event["files"].items()}}
        for event in body["events"]
    ]


class EventsView(TaskView):
    def post(self, request: Request, task: UUID) -> Response:
        body = _read(said.Events, request)
        events = _events(body)
        word = actions.record_events(task, self.attempt(body["attempt"]), events)
        return Response({"state": word})


class EndView(TaskView):
    def post(self, request: Request, task: UUID) -> Response:
        body = _read(said.End, request)
        result = body["result"] or {}
        ended = actions.end_task(
            task,
            self.attempt(body["attempt"]),
            outcome=body["outcome"],
            result={
                "data": result.get("data", {}),
                "files": {name: str(pk) for name, pk in result.get("files", {}).items()},
            },
            error=body["error"] or "",
            code=body["code"] or "",
            fault=body["fault"] or "",
            usage=body["usage"] or {},
            events=_events(body),
        )
        return Response({"state": ended.state})


class _Raw(BaseParser):
    """The body as it comes, in pieces."""

    media_type = "*/*"

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        return stream


class UploadView(TaskView):
    parser_classes = (_Raw,)

    def put(self, request: Request, task: UUID, name: str) -> Response:
        """Store a file of the attempt. Its X-SHA256 must fit what arrived."""
        if len(name) > MAX_NAME or not name.isprintable():
            raise Invalid(f"A file's name has at most {MAX_NAME} characters that can be printed.")
        held = get_object_or_404(Task.objects.select_related("organization", "worker"), pk=task)
        if (held.attempt, held.state) != (self.attempt(), Task.State.RUNNING):
            raise actions.NotYours("This attempt no longer holds the task: drop it.")
        length = request.headers.get("Content-Length", "")
        refuse_upload(held, name, int(length) if length.isdecimal() else 0)
        source = cast("IO[bytes]", request.stream or BytesIO())  # none: an empty file
        artifact = actions.store_artifact(held.organization, name, source, task=held)
        expected = request.headers.get("X-SHA256", artifact.sha256)
        if expected != artifact.sha256:
            artifact.file.delete(save=False)
            artifact.delete()
            raise Invalid("The file did not arrive whole: its hash differs. Send it again.")
        if name.startswith(CHECKPOINT):
            mine = Task.objects.filter(pk=task, attempt=held.attempt, state=Task.State.RUNNING)
            if not mine.exists():  # it ended meanwhile, or was lost: a late writer changes nothing
                artifact.file.delete(save=False)
                artifact.delete()
                raise actions.NotYours("This attempt no longer holds the task: drop it.")
            forget_checkpoints(task, but=artifact)
        return Response(
            {
                "artifact": str(artifact.pk),
                "sha256": artifact.sha256,
                "size": artifact.size,
                "signature": artifact.signature,
            },
            201,
        )


class MayRead(IsWorker):
    """A node reads what it may serve (``ArtifactView``); a task token the task's inputs, and how
    far its earlier attempts have come."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if not isinstance(request.auth, HeldAttempt):
            return super().has_permission(request, view)
        inputs = Task.objects.filter(
            pk=request.auth.task, attempt=request.auth.attempt, state=Task.State.RUNNING
        ).values_list("inputs", flat=True)
        asked = view.kwargs["artifact"]
        if any(str(asked) in given.values() for given in inputs):
            return True
        kept = Artifact.objects.filter(
            pk=asked, task=request.auth.task, name__startswith=CHECKPOINT
        )
        return bool(inputs) and kept.exists()


class ArtifactView(NodeView):
    permission_classes = (MayRead,)

    def get(self, request: Request, artifact: UUID) -> HttpResponseBase:
        readable = Artifact.objects.all()
        if isinstance(request.auth, Worker):
            # The platform's nodes serve everybody, an organization's own nobody else.
            mine = request.auth.organization_id
            readable = (
                readable.filter(own_node=False)
                if mine is None
                else readable.filter(organization=mine)
            )
        found = get_object_or_404(readable, pk=artifact)
        response = file_response(found.file, filename=found.name)
        response["X-SHA256"] = found.sha256
        response["X-Signature"] = found.signature
        return response


class LiveTicketView(OrgAPIView):
    """A one-time ticket for ``/ws?ticket=…``, for clients that sign in with a token."""

    roles: ClassVar = {"post": Role.VIEWER}
    people_only = True

    @extend_schema(
        request=None,
        responses={201: inline_serializer("LiveTicket", {"ticket": CharField()})},
        tags=["live"],
    )
    def post(self, request: Request) -> Response:
        """Make a ticket. It opens one connection, within a minute."""
        session = getattr(request._request, "session", None)
        shown = credentials.of_request(self.membership.user, request.auth, session)
        if shown is None:
            raise NotAuthenticated
        return Response({"ticket": live.make_ticket(shown)}, 201)
