"""Clusters and deployments, for programs; and what nodes ask about their replicas."""

from typing import Any, ClassVar
from urllib.parse import quote
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpResponse
from django.urls import reverse
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.authentication import TokenAuthentication
from accounts.errors import Invalid
from accounts.jwt import JWTAuthentication
from clusters import actions, forwarding, history, outcomes, serving, totals, watch
from clusters.api import serializers as said
from clusters.models import Cluster, Deployment
from clusters.nodes import take_log, what_to_run
from organizations.api.base import OrgAPIView, OrgViewSet
from organizations.models import Role
from training.api.serializers import Rows
from workers.api.views import NodeView
from workers.fleet import is_operator
from workers.models import Event

_DAY = OpenApiParameter("hours", int, description="24 or 168.")


@extend_schema(tags=["clusters"])
class ClusterViewSet(OrgViewSet):
    """Pools of nodes on which deployments run."""

    roles: ClassVar = {
        "list": Role.VIEWER,
        "retrieve": Role.VIEWER,
        "history": Role.VIEWER,
        "create": Role.ADMIN,
        "partial_update": Role.ADMIN,
        "destroy": Role.ADMIN,
        "add_node": Role.ADMIN,
        "remove_node": Role.ADMIN,
    }
    queryset = Cluster.objects.all()
    serializer_class = said.ClusterRow
    search_fields = ("name",)
    ordering_fields = ("name", "created_at")
    ordering = ("name",)

    @extend_schema(responses=said.ClusterRow(many=True))
    def list(self, request: Request) -> Response:
        """The organization's clusters, by name."""
        found = totals.counted(self.filter_queryset(self.get_queryset()))
        page: Any = self.paginate_queryset(found)
        totals.add_totals(page)
        return self.get_paginated_response(said.ClusterRow(page, many=True).data)

    @extend_schema(responses=said.ClusterFull)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One cluster: total, allocated and free, of each resource and on each node."""
        return Response(self._full())

    @extend_schema(request=said.NewCluster, responses={201: said.ClusterFull})
    def create(self, request: Request) -> Response:
        """Make a cluster. Without totals it is as large as its nodes are."""
        form = said.NewCluster(data=request.data)
        form.is_valid(raise_exception=True)
        made = actions.make_cluster(
            self.membership,
            name=form.validated_data["name"],
            limit=form.limit,
            nodes=form.validated_data["node_ids"],
            operator=is_operator(request.user, request.auth),
        )
        answer = Response(self._full(made.pk), 201)
        answer["Location"] = reverse("cluster", args=[made.pk])
        return answer

    @extend_schema(request=said.ClusterChange, responses=said.ClusterFull)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Rename it, or change its totals; null takes a limit away."""
        form = said.ClusterChange(data=request.data)
        form.is_valid(raise_exception=True)
        name = form.validated_data.get("name")
        actions.change_cluster(self.membership, self.get_object(), name=name, **form.limit)
        return Response(self._full())

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Delete it. 409 while it has deployments."""
        actions.delete_cluster(self.membership, self.get_object())
        return Response(status=204)

    @extend_schema(request=said.NodeWish, responses=said.ClusterFull)
    def add_node(self, request: Request, pk: UUID) -> Response:
        """Put a node in. 409 if it is in another cluster: a node is in one at most."""
        form = said.NodeWish(data=request.data)
        form.is_valid(raise_exception=True)
        actions.add_node(
            self.membership,
            self.get_object(),
            form.validated_data["node_id"],
            operator=is_operator(request.user, request.auth),
        )
        return Response(self._full())

    @extend_schema(responses={204: None})
    def remove_node(self, request: Request, pk: UUID, node: UUID) -> Response:
        """Take a node out; what runs there moves to the others first."""
        actions.remove_node(self.membership, self.get_object(), node)
        return Response(status=204)

    @extend_schema(parameters=[_DAY], responses=said.ClusterHistory, filters=False)
    def history(self, request: Request, pk: UUID) -> Response:
        """What it had, what was allocated and free, in the last day by 15 min or week by 2 h."""
        text = request.query_params.get("hours", "24")
        if not text.isdecimal() or len(text) > 3 or int(text) not in history.HOURS:
            known = ", ".join(map(str, history.HOURS))
            raise Invalid(f"hours is one of {known}.", errors={"hours": [f"Choose of {known}."]})
        told = {
            "step_s": history.HOURS[int(text)] * 60,
            "steps": history.steps(self.get_object(), int(text)),
        }
        return Response(said.ClusterHistory(told).data)

    def _full(self, pk: UUID | None = None) -> dict[str, Any]:
        if pk is not None:
            self.kwargs["pk"] = pk
        found = totals.counted(self.get_queryset()).filter(pk=self.kwargs["pk"]).first()
        cluster = found or self.get_object()  # which says that there is none
        totals.add_details(cluster)
        cluster.history = history.steps(cluster, 24)
        return dict(said.ClusterFull(cluster).data)


class DeploymentFilter(filters.FilterSet):
    # By id alone: whether a cluster of another organization exists is not told.
    cluster = filters.UUIDFilter(field_name="cluster_id")
    state = filters.MultipleChoiceFilter(choices=Deployment.State.choices)

    class Meta:
        model = Deployment
        fields: ClassVar = ["preemptible"]


HOURS = {1: 1, 24: 15, 168: 120}  # and how many minutes a step of their charts is
DAYS = 30
METHODS = ("get", "head", "post", "put", "patch", "delete", "options")
_HOURS = OpenApiParameter("hours", int, description="1, 24 or 168.")
LINES = 500
_SINCE = OpenApiParameter("after", int, description="Only lines of a higher id.")
_AFTER = OpenApiParameter("after", int, description="Only events of a higher number.")


@extend_schema(tags=["deployments"])
class DeploymentViewSet(OrgViewSet):
    """Models that keep running behind an address of their own."""

    roles: ClassVar = {
        "list": Role.VIEWER,
        "retrieve": Role.VIEWER,
        "revisions": Role.VIEWER,
        "events": Role.VIEWER,
        "metrics": Role.VIEWER,
        "drift": Role.VIEWER,
        "outcomes": Role.VIEWER,
        "feedback": Role.DEVELOPER,
        "logs": Role.VIEWER,
        "create": Role.DEVELOPER,
        "partial_update": Role.DEVELOPER,
        "destroy": Role.DEVELOPER,
        "stop": Role.DEVELOPER,
        "start": Role.DEVELOPER,
        "rollback": Role.DEVELOPER,
        "promote": Role.DEVELOPER,
        "abandon": Role.DEVELOPER,
        "retrain": Role.DEVELOPER,
        "predict": Role.DEVELOPER,
    }
    serves: ClassVar = {"predict": "deployment", "feedback": "deployment"}
    queryset = Deployment.objects.there().select_related("cluster", "revision", "canary")
    serializer_class = said.DeploymentRow
    filterset_class = DeploymentFilter
    search_fields = ("name",)
    ordering_fields = ("name", "created_at", "priority", "state")
    ordering = ("-created_at", "id")

    @extend_schema(responses=said.DeploymentRow(many=True))
    def list(self, request: Request) -> Response:
        """The organization's deployments, newest first."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(said.DeploymentRow(page, many=True).data)

    @extend_schema(responses=said.DeploymentFull)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One deployment: its replicas, where they are, and what it waits for."""
        return Response(said.DeploymentFull(self._one()).data)

    @extend_schema(request=said.NewDeployment, responses={201: said.DeploymentFull})
    def create(self, request: Request) -> Response:
        """Deploy a model. It runs as soon as its cluster has room; what never could is refused."""
        form = said.NewDeployment(data=request.data)
        form.is_valid(raise_exception=True)
        needs = form.needs(1024, 500, 0)
        wish = dict(form.validated_data)
        made = actions.deploy(
            self.membership, cluster=wish.pop("cluster_id", None), needs=needs, **wish
        )
        answer = Response(said.DeploymentFull(self._one(made.pk)).data, 201)
        answer["Location"] = reverse("deployment", args=[made.pk])
        return answer

    @extend_schema(request=said.DeploymentChange, responses=said.DeploymentFull)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Scale it, change its priority, or let it run something else.

        A new model, env, port or health_path makes a new revision: its replicas come up beside the
        old ones, which stop as the new ones answer. ``canary`` tries a model beside it, with a
        share of the requests, until it is promoted or abandoned.
        """
        form = said.DeploymentChange(data=request.data)
        form.is_valid(raise_exception=True)
        one = self._one()
        needs = form.needs(*one.needs)
        actions.change(self.membership, one, needs=needs, **form.validated_data)
        return Response(said.DeploymentFull(self._one()).data)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Stop it and forget it. 409 while others depend on it."""
        actions.delete(self.membership, self._one())
        return Response(status=204)

    @extend_schema(request=None, responses={202: said.Done})
    def stop(self, request: Request, pk: UUID) -> Response:
        """Let its replicas end. It can be started again. Warns of those that depend on it."""
        one = self._one()
        names = actions.dependents(one)
        actions.stop(self.membership, one)
        return self._done([f"{name} does not start while this is stopped." for name in names])

    @extend_schema(request=None, responses={202: said.Done})
    def start(self, request: Request, pk: UUID) -> Response:
        """Let it run again."""
        actions.start(self.membership, self._one())
        return self._done()

    @extend_schema(request=said.Rollback, responses={202: said.Done})
    def rollback(self, request: Request, pk: UUID) -> Response:
        """Run an earlier revision again."""
        form = said.Rollback(data=request.data)
        form.is_valid(raise_exception=True)
        actions.roll_back(self.membership, self._one(), form.validated_data.get("revision"))
        return self._done()

    @extend_schema(request=None, responses={202: said.Done})
    def promote(self, request: Request, pk: UUID) -> Response:
        """Give the canary all requests: its revision becomes the deployment's."""
        actions.promote(self.membership, self._one())
        return self._done()

    @extend_schema(request=None, responses={202: said.Done})
    def abandon(self, request: Request, pk: UUID) -> Response:
        """Let the canary go."""
        actions.abandon(self.membership, self._one())
        return self._done()

    @extend_schema(request=None, responses={202: said.Retraining})
    def retrain(self, request: Request, pk: UUID) -> Response:
        """Train its model again, as it was, on the newest version of the data set.

        What comes of it can be tried as a canary: PATCH {"canary": {"model": …}}.
        """
        job = actions.retrain(self.membership, self._one())
        return Response(said.Retraining({"job": job.pk}).data, 202)

    def _done(self, warnings: Any = ()) -> Response:
        one = self._one()
        one.warnings = list(warnings)  # type: ignore[attr-defined]
        return Response(said.Done(one).data, 202)

    @extend_schema(responses=said.RevisionShown(many=True), filters=False)
    def revisions(self, request: Request, pk: UUID) -> Response:
        """What it has run, newest first."""
        page = self.paginate_queryset(self._one().revisions.select_related("model"))
        return self.get_paginated_response(said.RevisionShown(page, many=True).data)

    @extend_schema(parameters=[_AFTER], responses=said.EventShown(many=True), filters=False)
    def events(self, request: Request, pk: UUID) -> Response:
        """What has happened, oldest first. Live: the topic ``deployment:<id>`` of ``/ws``."""
        after = request.query_params.get("after", "0")
        if not after.isdecimal() or len(after) > 9:
            raise Invalid("after is a number.", errors={"after": ["Give a number."]})
        events = Event.objects.filter(stream=self._one().topic, seq__gt=int(after)).order_by("seq")
        page = self.paginate_queryset(events)
        return self.get_paginated_response(said.EventShown(page, many=True).data)

    @extend_schema(parameters=[_SINCE], responses=said.Log, filters=False)
    def logs(self, request: Request, pk: UUID) -> Response:
        """What its replicas print, oldest first: the newest 500 lines, or what follows ``after``.

        The newest 5,000 are kept.
        """
        after = request.query_params.get("after", "0")
        if not after.isdecimal() or len(after) > 18:
            raise Invalid("after is the id of a line.", errors={"after": ["Give a number."]})
        mine = self._one().log_lines
        if int(after):
            lines = list(mine.filter(id__gt=int(after)).order_by("id")[:LINES])
        else:
            lines = list(mine.order_by("-id")[:LINES])[::-1]
        return Response({"results": said.LogLineShown(lines, many=True).data})

    @extend_schema(parameters=[_HOURS], responses=said.DeploymentMetrics, filters=False)
    def metrics(self, request: Request, pk: UUID) -> Response:
        """Requests, errors and latencies: of the last hour by minute, or longer in larger steps."""
        text = request.query_params.get("hours", "1")
        if not text.isdecimal() or len(text) > 3 or int(text) not in HOURS:
            known = ", ".join(map(str, HOURS))
            raise Invalid(f"hours is one of {known}.", errors={"hours": [f"Choose of {known}."]})
        hours, step_min = int(text), HOURS[int(text)]
        one = self._one()
        told = {
            "step_s": step_min * 60,
            "steps": watch.served(one, hours, step_min),
            "revisions": watch.together(one, hours),
        }
        return Response(said.DeploymentMetrics(told).data)

    @extend_schema(responses=said.DeploymentDrift)
    def drift(self, request: Request, pk: UUID) -> Response:
        """How far what it is asked lately is from what its model was trained on, by column."""
        one = self._one()
        told = {
            "samples": one.samples,
            "kept": one.sampled.count(),
            "threshold": one.drift_threshold,
            "latest": one.drift_reports.order_by("-at").first(),
        }
        return Response(said.DeploymentDrift(told).data)

    @extend_schema(responses=said.HowRight, filters=False)
    def outcomes(self, request: Request, pk: UUID) -> Response:
        """How right it was on each of the last 30 days, by what was sent back."""
        return Response(said.HowRight(outcomes.by_day(self._one(), DAYS)).data)

    @extend_schema(request=said.Outcomes, responses=said.OutcomesTaken)
    def feedback(self, request: Request, pk: UUID) -> Response:
        """Tell what became true of predictions: by the id of the answer, and the row in it.

        Of those that were sampled; the same again replaces what was sent before.
        """
        form = said.Outcomes(data=request.data)
        form.is_valid(raise_exception=True)
        return Response(outcomes.take(self._one(), form.validated_data["outcomes"]))

    @extend_schema(request=Rows, responses=said.Answer)
    def predict(self, request: Request, pk: UUID) -> Response:
        """Ask a replica that answers. Send {"rows": [{column: value}, ...]}."""
        rows = request.data.get("rows") if isinstance(request.data, dict) else request.data
        return Response(serving.predict(self.membership.organization, pk, rows))

    def _one(self, pk: UUID | None = None) -> Deployment:
        if pk is not None:
            self.kwargs["pk"] = pk
        one: Deployment = self.get_object()
        one.organization = self.membership.organization  # spares a query
        return one

    def get_queryset(self) -> QuerySet[Deployment]:
        found: QuerySet[Deployment] = super().get_queryset()
        if self.action == "list":
            return found
        return found.prefetch_related("dependencies", "dependents")


class ContainerView(OrgAPIView):
    """HTTP of a deployment's container: any method, any path below it.

    Tokens alone get in, no session of a browser: the container's pages are not FlowML's, and must
    not be shown as if they were.
    """

    authentication_classes: Any = (TokenAuthentication, JWTAuthentication)
    parser_classes: Any = ()
    schema = None  # what it takes and gives is the container's matter
    roles: ClassVar = dict.fromkeys(METHODS, Role.DEVELOPER)
    serves: ClassVar = dict.fromkeys(METHODS, "deployment")

    def _forward(self, request: Request, pk: UUID, path: str = "") -> HttpResponse:
        query = request.META.get("QUERY_STRING", "")
        asked = forwarding.Asked(
            str(request.method),
            "/" + quote(path, safe="/:@!$&'()*+,;=-._~") + (f"?{query}" if query else ""),
            [*request.headers.items()],
            request._request.body,
        )
        found = forwarding.forward(self.membership.organization, pk, asked)
        answer = HttpResponse(found.body, status=found.status)
        del answer["Content-Type"]
        for name, value in found.headers:
            answer[name] = value
        # Whatever opens it shows it in an empty room: no script, no form, no cookie of ours.
        answer["Content-Security-Policy"] = "sandbox; default-src 'none'"
        answer["X-Content-Type-Options"] = "nosniff"
        answer["X-FlowML-Revision"] = str(found.revision)
        answer["X-FlowML-Replica"] = str(found.replica)
        return answer

    get = head = post = put = patch = delete = options = _forward  # type: ignore[assignment]


class ReplicaLogView(NodeView):
    """A node hands in what one of its replicas has printed."""

    def post(self, request: Request, replica: UUID) -> Response:
        form = said.Printed(data=request.data)
        form.is_valid(raise_exception=True)
        take_log(self.node, replica, **form.validated_data)
        return Response(status=204)


class ReplicaView(NodeView):
    """A node asks what one of its replicas is to run."""

    def get(self, request: Request, replica: UUID) -> Response:
        return Response(what_to_run(self.node, replica))
