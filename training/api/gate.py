"""Before a start, for programs: what speaks against the data, and what it would take."""

from typing import Any, ClassVar
from uuid import UUID

from django.urls import reverse
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from organizations.api.base import OrgAPIView, OrgViewSet
from organizations.models import Role
from training import actions, presets
from training.api.serializers import Engines, Split, Waiting
from training.checks import TASK_TYPES
from training.models import DataCheck
from workers.waiting import wait_of


class CheckWish(serializers.Serializer[Any]):
    dataset = serializers.UUIDField()
    version = serializers.IntegerField(
        required=False, allow_null=True, min_value=1, help_text="Without it, the latest."
    )
    target = serializers.CharField(max_length=255, help_text="The column to predict.")
    task_type = serializers.CharField(default="auto", help_text=f"One of: {', '.join(TASK_TYPES)}.")
    column_types = serializers.DictField(child=serializers.CharField(), default=dict)
    exclude = serializers.ListField(
        child=serializers.CharField(),
        default=list,
        help_text="Findings about these columns alone are not told.",
    )
    split = Split(required=False, allow_null=True)


class Remedy(serializers.Serializer[Any]):
    exclude = serializers.ListField(child=serializers.CharField(), required=False)
    split = serializers.DictField(required=False)


class Finding(serializers.Serializer[Any]):
    severity = serializers.ChoiceField(["severe", "warning", "info"])
    code = serializers.CharField()
    columns = serializers.ListField(child=serializers.CharField())
    message = serializers.CharField(help_text="What was found, with its figures, for a person.")
    advice = serializers.CharField(help_text="What to do.")
    figures = serializers.DictField()
    remedy = Remedy(allow_null=True, help_text="What to change of the request; null: no one thing.")


class Check(serializers.ModelSerializer[DataCheck]):
    dataset = serializers.UUIDField(source="dataset_version.dataset_id")
    version = serializers.IntegerField(source="dataset_version.number")
    findings = serializers.SerializerMethodField(help_text="Gravest first.")
    waiting = serializers.SerializerMethodField(help_text="Why it does not start; else null.")
    topic = serializers.CharField(help_text="Where its live events appear.")

    class Meta:
        model = DataCheck
        fields: ClassVar = [
            "id", "dataset", "version", "target", "task", "split", "state", "findings", "rows",
            "sample", "seconds", "error", "waiting", "created_at", "finished_at", "topic",
        ]  # fmt: skip

    @extend_schema_field(Finding(many=True))
    def get_findings(self, check: DataCheck) -> list[dict[str, Any]]:
        return check.told(self.context.get("exclude", ()))

    @extend_schema_field(Waiting(allow_null=True))
    def get_waiting(self, check: DataCheck) -> dict[str, Any] | None:
        if check.has_ended or check.work is None:
            return None
        wait = wait_of([check.work], check.organization)
        return dict(Waiting(wait).data) if wait else None


@extend_schema(tags=["training"])
class CheckViewSet(OrgViewSet):
    roles: ClassVar = {"create": Role.DEVELOPER, "retrieve": Role.VIEWER}
    queryset = DataCheck.objects.select_related("dataset_version", "work").defer(
        "dataset_version__columns", "work__payload", "work__result"
    )
    serializer_class = Check

    @extend_schema(request=CheckWish, responses={200: Check, 202: Check})
    def create(self, request: Request) -> Response:
        """What speaks against training like this: leaks, copies, classes, a better split.

        Answered at once where it was asked before; else 202, and what to watch.
        """
        form = CheckWish(data=request.data)
        form.is_valid(raise_exception=True)
        wish = dict(form.validated_data)
        exclude = wish.pop("exclude")
        check = actions.check_data(self.membership, wish.pop("dataset"), **wish)
        check.organization = self.membership.organization  # spares a query
        done = check.state == DataCheck.State.SUCCEEDED
        answer = Response(Check(check, context={"exclude": exclude}).data, 200 if done else 202)
        answer["Location"] = reverse("training-check", args=[check.pk])
        return answer

    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One check: how far it is, and what it found."""
        check = self.get_object()
        check.organization = self.membership.organization
        return Response(Check(check).data)


class EstimateWish(CheckWish):
    exclude = serializers.ListField(child=serializers.CharField(), default=list)
    preset = serializers.ChoiceField(list(presets.PRESETS), default=presets.DEFAULT)
    engines = Engines(default=list)
    time_budget = serializers.FloatField(required=False, allow_null=True, help_text="Seconds.")
    budget_mode = serializers.ChoiceField(list(presets.BUDGET_MODES), required=False)


class OffBy(serializers.Serializer[Any]):
    """How far off earlier estimates were, as ratios from 1 upwards."""

    median = serializers.FloatField()
    p90 = serializers.FloatField()
    runs = serializers.IntegerField()


class EngineEstimate(serializers.Serializer[Any]):
    engine = serializers.CharField()
    budget_s = serializers.FloatField()
    seconds = serializers.FloatField()
    seconds_low = serializers.FloatField(help_text="To seconds_high: nine of ten or so.")
    seconds_high = serializers.FloatField()
    runs = serializers.IntegerField(help_text="Of this engine, on which it rests; 0 for none.")
    ram_mib = serializers.IntegerField(help_text="What its task would ask for.")
    queue = serializers.CharField()
    nodes = serializers.ListField(child=serializers.CharField(), help_text="That serve it now.")
    starts_in_s = serializers.FloatField(allow_null=True, help_text="Null: nobody can tell.")
    waits = serializers.CharField(help_text="Why it would wait; empty when it would start at once.")


class Estimate(serializers.Serializer[Any]):
    rows = serializers.IntegerField()
    columns = serializers.IntegerField()
    seconds = serializers.FloatField(
        allow_null=True, help_text="For the race, side by side where nodes allow; null: no node."
    )
    starts_in_s = serializers.FloatField(allow_null=True, help_text="Null: nobody can tell.")
    ram_mib = serializers.IntegerField(help_text="Of the largest task.")
    from_history = serializers.BooleanField(
        help_text="False: nothing is known here of these engines, and the budget stands."
    )
    explanation = serializers.CharField()
    seconds_error = OffBy(allow_null=True)
    ram_error = OffBy(allow_null=True)
    engines = EngineEstimate(many=True)


@extend_schema(tags=["training"])
class EstimateView(OrgAPIView):
    roles: ClassVar = {"post": Role.DEVELOPER}

    @extend_schema(request=EstimateWish, responses=Estimate)
    def post(self, request: Request) -> Response:
        """What such a race would take, where, and how soon: by what ended here before."""
        form = EstimateWish(data=request.data)
        form.is_valid(raise_exception=True)
        wish = dict(form.validated_data)
        found = actions.estimate_job(self.membership, wish.pop("dataset"), **wish)
        return Response(Estimate(found).data)
