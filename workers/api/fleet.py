"""The fleet for programs: nodes, their queues, what to do with them, and join tokens."""

from typing import Any, ClassVar
from uuid import UUID

from django.conf import settings
from django.db.models import Q
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.errors import NotFound
from accounts.models import User
from accounts.pagination import Page
from organizations.api.base import OrgAPIView
from organizations.models import Role
from workers import fleet, joining
from workers.models import JoinToken

ACTIONS = {
    "drain": joining.drain,
    "resume": joining.resume,
    "restart": joining.restart,
    "remove": joining.remove,
}


class Gpu(serializers.Serializer[Any]):
    name = serializers.CharField()
    memory_mib = serializers.IntegerField()


class Usage(serializers.Serializer[Any]):
    cpu_percent = serializers.FloatField(allow_null=True)
    ram_used_mib = serializers.IntegerField(allow_null=True)
    disk_free_mib = serializers.IntegerField(allow_null=True)
    gpus = serializers.ListField(child=serializers.DictField())


class NodeOut(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    name = serializers.CharField()
    organization = serializers.UUIDField(
        allow_null=True, help_text="null: the platform's, which works for everybody."
    )
    organization_name = serializers.CharField(allow_blank=True)
    state = serializers.CharField(help_text="online, draining, restarting or offline")
    version = serializers.CharField()
    queues = serializers.ListField(child=serializers.CharField())
    concurrency = serializers.IntegerField()
    wanted = serializers.DictField(help_text="What was set here in place of the node's own wishes.")
    cpu = serializers.FloatField()
    ram_mib = serializers.IntegerField()
    gpus = Gpu(many=True)
    engines = serializers.ListField(child=serializers.CharField())
    llm = serializers.BooleanField()
    system = serializers.CharField()
    running = serializers.IntegerField(help_text="Tasks of yours; an operator's: all.")
    usage = Usage()
    last_seen_at = serializers.DateTimeField()
    registered_at = serializers.DateTimeField()


class NodeList(serializers.Serializer[Any]):
    count = serializers.IntegerField()
    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)
    results = NodeOut(many=True)


class NodeChange(serializers.Serializer[Any]):
    concurrency = serializers.IntegerField(
        required=False, min_value=0, max_value=1000, help_text="0: as the node itself chooses."
    )
    queues = serializers.ListField(
        child=serializers.CharField(max_length=80),
        required=False,
        max_length=100,
        help_text="Queues, or classes as cpu or gpu. Empty: all that it can serve.",
    )


class QueueOut(serializers.Serializer[Any]):
    queue = serializers.CharField()
    requirement = serializers.CharField()
    depth = serializers.IntegerField()
    oldest_wait_s = serializers.FloatField(allow_null=True)
    nodes = serializers.ListField(child=serializers.CharField())


class StatsOut(serializers.Serializer[Any]):
    nodes = serializers.DictField(child=serializers.IntegerField())
    cpu = serializers.FloatField()
    cpu_used = serializers.FloatField()
    ram_mib = serializers.IntegerField()
    ram_used_mib = serializers.IntegerField()
    gpus = serializers.IntegerField()
    running = serializers.IntegerField()
    waiting = serializers.IntegerField()


class JoinTokenIn(serializers.Serializer[Any]):
    minutes = serializers.IntegerField(min_value=1, max_value=joining.MOST_MINUTES, default=60)
    uses = serializers.IntegerField(min_value=1, max_value=joining.MOST_USES, default=1)
    platform = serializers.BooleanField(
        default=False, help_text="An operator's: the machines will work for everybody."
    )


class JoinTokenOut(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    organization = serializers.UUIDField(source="organization_id", allow_null=True)
    uses = serializers.IntegerField()
    max_uses = serializers.IntegerField()
    expires_at = serializers.DateTimeField()
    token = serializers.CharField(required=False, help_text="Shown once, when it is made.")
    command = serializers.CharField(required=False, help_text="Joins a machine, in one line.")


class FleetView(OrgAPIView):
    @property
    def operator(self) -> bool:
        return fleet.is_operator(self.request.user, self.request.auth)


@extend_schema(tags=["workers"])
class NodesView(FleetView):
    roles: ClassVar = {"get": Role.VIEWER}

    @extend_schema(operation_id="workers_list", responses=NodeList)
    def get(self, request: Request) -> Response:
        """The nodes that work for you: your organization's and the platform's."""
        pages = Page()
        with fleet.seen_by(self.membership, operator=self.operator) as nodes:
            found = pages.paginate_queryset(nodes, request) or []
            return pages.get_paginated_response([fleet.told(node) for node in found])


@extend_schema(tags=["workers"])
class NodeView(FleetView):
    roles: ClassVar = {"get": Role.VIEWER, "patch": Role.ADMIN, "delete": Role.ADMIN}

    @extend_schema(responses=NodeOut)
    def get(self, request: Request, node: UUID) -> Response:
        """One node."""
        with fleet.seen_by(self.membership, operator=self.operator) as nodes:
            found = nodes.filter(pk=node).first()
            if found is None:
                raise NotFound("There is no such node here.")
            return Response(fleet.told(found))

    @extend_schema(request=NodeChange, responses=NodeOut)
    def patch(self, request: Request, node: UUID) -> Response:
        """Set its concurrency and its queues. It learns of this within seconds, and goes on."""
        form = NodeChange(data=request.data)
        form.is_valid(raise_exception=True)
        with fleet.seen_by(self.membership, operator=self.operator) as nodes:
            found = fleet.node_to_change(nodes, node, self.membership, operator=self.operator)
            joining.change(found, by=None, **form.validated_data)
            return Response(fleet.told(found))

    @extend_schema(responses={204: None})
    def delete(self, request: Request, node: UUID) -> Response:
        """Remove it: its token is void, and what it runs is queued again."""
        with fleet.seen_by(self.membership, operator=self.operator) as nodes:
            found = fleet.node_to_change(nodes, node, self.membership, operator=self.operator)
            joining.remove(found, by=None)
        return Response(status=204)


@extend_schema(tags=["workers"])
class NodeActionView(FleetView):
    roles: ClassVar = {"post": Role.ADMIN}

    @extend_schema(request=None, responses={202: NodeOut})
    def post(self, request: Request, node: UUID, action: str) -> Response:
        """drain: take nothing new. resume: work again. restart: when idle. remove: forget it."""
        with fleet.seen_by(self.membership, operator=self.operator) as nodes:
            found = fleet.node_to_change(nodes, node, self.membership, operator=self.operator)
            answer = fleet.told(found)
            ACTIONS[action](found, by=None)
            if action != "remove":
                answer = fleet.told(nodes.get(pk=node))
        return Response(answer, 202)


@extend_schema(tags=["workers"])
class StatsView(FleetView):
    roles: ClassVar = {"get": Role.VIEWER}

    @extend_schema(responses=StatsOut)
    def get(self, request: Request) -> Response:
        """Capacity and use of the nodes that work for you, and what of yours runs and waits."""
        with fleet.seen_by(self.membership, operator=self.operator) as nodes:
            tasks = fleet.tasks_seen_by(self.membership, operator=self.operator)
            return Response(fleet.stats(list(nodes), tasks))


@extend_schema(tags=["workers"])
class QueuesView(FleetView):
    roles: ClassVar = {"get": Role.VIEWER}

    @extend_schema(responses=QueueOut(many=True))
    def get(self, request: Request) -> Response:
        """Each queue: what it asks of a node, how much of yours waits on it, who serves it."""
        with fleet.seen_by(self.membership, operator=self.operator) as nodes:
            tasks = fleet.tasks_seen_by(self.membership, operator=self.operator)
            return Response(fleet.queues(list(nodes), tasks))


@extend_schema(tags=["workers"])
class LocalView(FleetView):
    roles: ClassVar = {"get": Role.VIEWER}

    @extend_schema(responses=NodeOut)
    def get(self, request: Request) -> Response:
        """The node on the machine that FlowML itself runs on."""
        with fleet.seen_by(self.membership, operator=self.operator) as nodes:
            of_platform = nodes.filter(organization=None).exclude(address="")
            found = of_platform.filter(name="local").first() or of_platform.first()
            if found is None:
                raise NotFound("No node runs on the machine of FlowML itself.")
            return Response(fleet.told(found))


def command_for(token: str) -> str:
    """The line that joins a machine."""
    script = f"{settings.PUBLIC_URL}/api/workers/join.sh"
    return f"curl -fsS -H 'Authorization: Join {token}' {script} | sh -s --"


@extend_schema(tags=["workers"])
class JoinTokensView(FleetView):
    roles: ClassVar = {"get": Role.ADMIN, "post": Role.ADMIN}

    @extend_schema(responses=JoinTokenOut(many=True))
    def get(self, request: Request) -> Response:
        """Join tokens that still let somebody in; never their text."""
        wanted = Q(organization=self.membership.organization_id)
        if self.operator:
            wanted |= Q(organization=None)
        with fleet.seen_by(self.membership, operator=self.operator):
            found = JoinToken.objects.filter(wanted, expires_at__gte=timezone.now())
            return Response(JoinTokenOut(found, many=True).data)

    @extend_schema(request=JoinTokenIn, responses={201: JoinTokenOut})
    def post(self, request: Request) -> Response:
        """Let machines join for a while. The token and the command are shown this once."""
        form = JoinTokenIn(data=request.data)
        form.is_valid(raise_exception=True)
        asked = form.validated_data
        for_all = asked.pop("platform")
        if for_all and not self.operator:
            raise fleet.NotYourNode("Only the operator lets machines join the platform.")
        by = request.user if isinstance(request.user, User) else None
        with fleet.seen_by(self.membership, operator=self.operator):
            made, text = joining.make_join_token(
                None if for_all else self.membership.organization, by=by, **asked
            )
        made.token, made.command = text, command_for(text)  # type: ignore[attr-defined]
        return Response(JoinTokenOut(made).data, 201)


@extend_schema(tags=["workers"])
class JoinTokenView(FleetView):
    roles: ClassVar = {"delete": Role.ADMIN}

    @extend_schema(responses={204: None})
    def delete(self, request: Request, token: UUID) -> Response:
        """Let nobody else in with it. Nodes that have joined stay."""
        with fleet.seen_by(self.membership, operator=self.operator):
            found = JoinToken.objects.filter(pk=token)
            if not self.operator:
                found = found.filter(organization=self.membership.organization_id)
            if (one := found.first()) is None:
                raise NotFound("There is no such join token here.")
            joining.revoke_join_token(one, by=None)
        return Response(status=204)
