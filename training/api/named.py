"""Models by name, for programs: no ids needed."""

from collections.abc import Iterable
from typing import Any, ClassVar
from uuid import UUID

from django.db.models import QuerySet, prefetch_related_objects
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.errors import FlowError
from organizations.api.base import OrgViewSet
from organizations.models import Organization, Role
from training import named
from training.api.serializers import TrainedOn
from training.api.views import _KEY, _idempotency_key
from training.checks import TASK_TYPES
from training.models import TrainedModel
from training.names import NAME, NamedModel, NamedVersion
from training.offers import ALL

_NAMES = {"type": "array", "items": {"type": "string"}}
ADDRESS = OpenApiParameter(
    "model_name",
    str,
    OpenApiParameter.PATH,
    description="A name, or name@3, name@champion, name@latest. A name alone means its champion, "
    "or else its newest version that can be used.",
)


@extend_schema_field({"oneOf": [_NAMES, {"type": "string"}]})
class Models(serializers.ListField):
    """Names of models, one name, or "all"."""

    child = serializers.CharField()

    def to_internal_value(self, data: Any) -> Any:
        return data if isinstance(data, str) else super().to_internal_value(data)


class TrainWish(serializers.Serializer[Any]):
    dataset = serializers.CharField(help_text="Its name or id.")
    target = serializers.CharField(max_length=255, help_text="The column to predict.")
    models = Models(
        default=list,
        help_text="Such as random_forest or RandomForestClassifier; "
        f'"{ALL}" that do the task. Without it, the usual ones.',
    )
    hyperparameters = serializers.DictField(
        child=serializers.DictField(),
        default=dict,
        help_text="By model. The library's defaults hold for the rest.",
    )
    engine = serializers.CharField(default="sklearn", help_text="Or a version, as sklearn-1.4.")
    label = serializers.CharField(  # type: ignore[assignment]
        default="",
        allow_blank=True,
        max_length=60,
        help_text="Stands in the models' names. Without it, the data set's name.",
    )
    task_type = serializers.CharField(default="auto", help_text=f"One of: {', '.join(TASK_TYPES)}.")
    metric = serializers.CharField(default="", allow_blank=True)
    time_budget = serializers.FloatField(
        required=False, allow_null=True, help_text="Seconds for each model."
    )
    exclude = serializers.ListField(child=serializers.CharField(), default=list)
    description = serializers.CharField(default="", allow_blank=True, max_length=160)


class Figures(serializers.Serializer[Any]):
    """A version's model, or what has become of it."""

    version = serializers.IntegerField(source="number")
    aliases = serializers.SerializerMethodField()
    state = serializers.ChoiceField(NamedVersion.State.choices)
    reason = serializers.CharField(help_text="Why there is no model; else empty.")
    model = serializers.UUIDField(source="model_id", allow_null=True)
    job = serializers.UUIDField(source="job_id")
    engine = serializers.SerializerMethodField()
    dataset = TrainedOn(source="job.dataset")
    target = serializers.CharField(source="job.target")
    task = serializers.CharField(source="job.task")
    metric = serializers.CharField(source="job.metric")
    score = serializers.FloatField(source="model.ranked_score", allow_null=True, default=None)
    created_at = serializers.DateTimeField()

    def get_aliases(self, version: NamedVersion) -> list[str]:
        return sorted(alias.name for alias in version.aliases.all())

    def get_engine(self, version: NamedVersion) -> str:
        return str(version.model.engine if version.model else version.key.partition(":")[0])


class NameRow(serializers.ModelSerializer[NamedModel]):
    aliases = serializers.SerializerMethodField(help_text="The version that each alias means.")
    versions = serializers.IntegerField(source="version_count")
    newest = serializers.IntegerField(
        allow_null=True, help_text="The newest version, usable or not."
    )
    answers = serializers.SerializerMethodField(
        help_text="The version that the name alone means; null while there is none."
    )

    class Meta:
        model = NamedModel
        fields: ClassVar = [
            "name", "description", "versions", "newest", "aliases", "answers", "created_at",
        ]  # fmt: skip

    def get_aliases(self, name: NamedModel) -> dict[str, int]:
        return {alias.name: alias.version.number for alias in name.aliases.all()}

    @extend_schema_field(Figures(allow_null=True))
    def get_answers(self, name: NamedModel) -> dict[str, Any] | None:
        version = self.context["answering"].get(name.answers)  # type: ignore[attr-defined]
        return dict(Figures(version).data) if version else None


class Name(NameRow):
    history = serializers.SerializerMethodField(help_text="The newest 100 versions, newest first.")

    class Meta(NameRow.Meta):
        fields: ClassVar = [*NameRow.Meta.fields, "history"]

    @extend_schema_field(Figures(many=True))
    def get_history(self, name: NamedModel) -> list[dict[str, Any]]:
        return list(Figures(named.versions_of(name)[:100], many=True).data)


class NewVersion(serializers.Serializer[Any]):
    name = serializers.RegexField(rf"^{NAME.pattern}$", max_length=120)
    model = serializers.UUIDField(help_text="A model of any job, which becomes the next version.")
    description = serializers.CharField(required=False, allow_blank=True, max_length=2000)


class AliasWish(serializers.Serializer[Any]):
    version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)


class Promised(serializers.Serializer[Any]):
    name = serializers.CharField()
    version = serializers.IntegerField()
    model = serializers.CharField(help_text="As it is called in hyperparameters.")
    predict_url = serializers.CharField()


class Trained(serializers.Serializer[Any]):
    job = serializers.UUIDField()
    state = serializers.CharField()
    task = serializers.CharField()
    models = Promised(many=True)
    watch_url = serializers.CharField(help_text="How far the job is.")


class Features(serializers.Serializer[Any]):
    features = serializers.ListField(
        child=serializers.DictField(),
        help_text="Rows: objects that name every column of the model, in any order.",
    )


class Said(serializers.Serializer[Any]):
    model_name = serializers.CharField()
    version = serializers.IntegerField()
    model = serializers.UUIDField()
    target = serializers.CharField()
    predictions = serializers.ListField(help_text="A class name or a number per row.")
    probabilities = serializers.ListField(
        child=serializers.DictField(child=serializers.FloatField()), allow_null=True
    )
    classes = serializers.ListField(child=serializers.CharField(), allow_null=True)
    ms = serializers.DictField(child=serializers.FloatField())


class Failure(serializers.Serializer[Any]):
    code = serializers.CharField()
    detail = serializers.CharField()


class SaidOrNot(Said):
    predictions = serializers.ListField(allow_null=True, help_text="Null where it failed.")
    ms = serializers.DictField(child=serializers.FloatField(), allow_null=True)
    error = Failure(allow_null=True)


class SaidByAll(serializers.Serializer[Any]):
    models = SaidOrNot(many=True)
    answered = serializers.IntegerField()
    failed = serializers.IntegerField()
    left_out = serializers.IntegerField(
        help_text=f"Names that were not asked: one request asks {named.MOST_ASKED}."
    )


class Metrics(serializers.Serializer[Any]):
    model_name = serializers.CharField(source="named.name")
    version = serializers.IntegerField(source="number")
    model = serializers.UUIDField(source="model_id")
    engine = serializers.CharField(source="model.engine")
    dataset = TrainedOn(source="job.dataset")
    target = serializers.CharField(source="job.target")
    task = serializers.CharField(source="job.task")
    metric = serializers.CharField(source="job.metric", help_text="The one that ranks.")
    score = serializers.FloatField(source="model.ranked_score", allow_null=True)
    interval = serializers.SerializerMethodField(help_text="95% bootstrap interval of the score.")
    metrics = serializers.DictField(
        source="model.metrics", child=serializers.FloatField(allow_null=True)
    )
    rows = serializers.IntegerField(source="model.scored_rows", help_text="That it was scored on.")
    fit_s = serializers.FloatField(source="model.fit_s")

    def get_interval(self, version: NamedVersion) -> list[float] | None:
        interval = version.model.interval if version.model else None
        return list(interval) if interval else None


def _said(said: named.Said) -> dict[str, Any]:
    version, answer = said.version, said.answer
    return {
        "model_name": version.named.name,
        "version": version.number,
        "model": str(version.model_id),
        "target": version.job.target,
        "predictions": answer and answer.predictions,
        "probabilities": answer and answer.by_class,
        "classes": answer and answer.classes,
        "ms": answer and answer.ms,
    }


def _answering(home: Organization, names: Iterable[NamedModel]) -> dict[UUID, NamedVersion]:
    """The versions that names mean, and the aliases of the names: two queries for any number."""
    found = list(names)
    prefetch_related_objects(found, "aliases__version")
    wanted = [name.answers for name in found]  # type: ignore[attr-defined]
    versions = NamedVersion.objects.of(home).with_model().prefetch_related("aliases")
    return {version.pk: version for version in versions.filter(pk__in=wanted)}


class NameFilter(filters.FilterSet):
    dataset = filters.CharFilter(method="of_dataset", help_text="The name of a data set.")

    class Meta:
        model = NamedModel
        fields: ClassVar = ["name"]

    def of_dataset(self, names: QuerySet[NamedModel], _: str, value: str) -> QuerySet[NamedModel]:
        trained = NamedVersion.objects.filter(named.is_called(value, "job__dataset__name"))
        return names.filter(pk__in=trained.values("named"))


@extend_schema(tags=["by name"])
class NameViewSet(OrgViewSet):
    roles: ClassVar = {
        "list": Role.VIEWER,
        "retrieve": Role.VIEWER,
        "create": Role.DEVELOPER,
        "train": Role.DEVELOPER,
        "move": Role.DEVELOPER,
        "remove": Role.DEVELOPER,
    }
    queryset = NamedModel.objects.for_list()
    serializer_class = NameRow
    filterset_class = NameFilter
    search_fields = ("name", "description")
    ordering_fields = ("name", "created_at")
    ordering = ("name",)

    @extend_schema(request=TrainWish, responses={202: Trained}, parameters=[_KEY])
    def train(self, request: Request) -> Response:
        """Train models by name on a data set, side by side: each is a version of its name."""
        form = TrainWish(data=request.data)
        form.is_valid(raise_exception=True)
        wish = dict(form.validated_data)
        job, versions = named.train(
            self.membership,
            wish.pop("dataset"),
            **wish,
            idempotency_key=_idempotency_key(request),
        )
        watch = reverse("training-progress", args=[job.pk])
        told = [
            {
                "name": version.named.name,
                "version": version.number,
                "model": version.key.partition(":")[2],
                "predict_url": reverse("named-predict", args=[version.named.name]),
            }
            for version in versions
        ]
        answer = {"job": job.pk, "state": job.state, "task": job.task, "models": told}
        return Response(
            Trained(answer | {"watch_url": watch}).data,
            202,
            headers={"Location": reverse("training-job", args=[job.pk])},
        )

    @extend_schema(responses=NameRow(many=True))
    def list(self, request: Request) -> Response:
        """Named models by name, each with the version that answers for it."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset())) or []
        answering = _answering(self.membership.organization, page)
        shown = NameRow(page, many=True, context={"answering": answering})
        return self.get_paginated_response(shown.data)

    @extend_schema(responses=Name)
    def retrieve(self, request: Request, model_name: str) -> Response:
        """One name, its aliases and its versions."""
        return self._told(named.get_named(self.membership.organization, model_name))

    @extend_schema(request=NewVersion, responses={201: Name})
    def create(self, request: Request) -> Response:
        """Give a model of any job a name, or make it the next version of one."""
        form = NewVersion(data=request.data)
        form.is_valid(raise_exception=True)
        models = TrainedModel.objects.of(self.membership.organization).select_related("job")
        model = get_object_or_404(
            models.defer("curves", "test", "params"), pk=form.validated_data["model"]
        )
        name = form.validated_data["name"]
        named.give_name(
            self.membership, name, model, description=form.validated_data.get("description")
        )
        return self._told(named.get_named(self.membership.organization, name), 201)

    @extend_schema(request=AliasWish, responses=Name)
    def move(self, request: Request, model_name: str, alias: str) -> Response:
        """Let an alias mean this version. The champion is what the name alone means."""
        form = AliasWish(data=request.data)
        form.is_valid(raise_exception=True)
        return self._told(
            named.move_alias(self.membership, model_name, alias, form.validated_data["version"])
        )

    @extend_schema(responses={204: None})
    def remove(self, request: Request, model_name: str, alias: str) -> Response:
        """Forget an alias; the version stays."""
        named.remove_alias(self.membership, model_name, alias)
        return Response(status=204)

    def _told(self, name: NamedModel, status: int = 200) -> Response:
        answering = _answering(self.membership.organization, [name])
        return Response(Name(name, context={"answering": answering}).data, status)


@extend_schema(tags=["by name"])
class AskViewSet(OrgViewSet):
    roles: ClassVar = {
        "predict": Role.DEVELOPER,
        "predict_all": Role.DEVELOPER,
        "predict_dataset": Role.DEVELOPER,
    }
    # The view lets a token for one model ask that one alone.
    serves: ClassVar = dict.fromkeys(roles, "of-model")
    queryset = NamedVersion.objects.none()
    serializer_class = Said
    filter_backends = ()

    @extend_schema(request=Features, responses=Said, parameters=[ADDRESS])
    def predict(self, request: Request, model_name: str) -> Response:
        """Predict rows with a model by its name."""
        said = named.predict(self.membership, model_name, _features(request))
        return Response(_said(said))

    @extend_schema(request=Features, responses=SaidByAll)
    def predict_all(self, request: Request) -> Response:
        """Ask every named model; the answers stand side by side."""
        return self._all(request, None)

    @extend_schema(
        request=Features,
        responses=SaidByAll,
        operation_id="predict_all_of_dataset",
        parameters=[OpenApiParameter("dataset", str, OpenApiParameter.PATH)],
    )
    def predict_dataset(self, request: Request, dataset: str) -> Response:
        """Ask every named model that was trained on a data set (its name or id)."""
        return self._all(request, dataset)

    def _all(self, request: Request, dataset: str | None) -> Response:
        said, more = named.predict_all(self.membership, _features(request), dataset=dataset)
        failed = sum(one.error is not None for one in said)
        return Response(
            {
                "models": [_said(one) | {"error": _failure(one.error)} for one in said],
                "answered": len(said) - failed,
                "failed": failed,
                "left_out": more,
            }
        )


def _features(request: Request) -> object:
    return request.data.get("features") if isinstance(request.data, dict) else request.data


def _failure(error: FlowError | None) -> dict[str, str] | None:
    return {"code": error.code, "detail": error.detail} if error else None


@extend_schema(tags=["by name"])
class MetricsViewSet(OrgViewSet):
    roles: ClassVar = {"retrieve": Role.VIEWER, "list": Role.VIEWER}
    queryset = NamedVersion.objects.all()
    serializer_class = Metrics
    filter_backends = ()

    @extend_schema(responses=Metrics, parameters=[ADDRESS])
    def retrieve(self, request: Request, model_name: str) -> Response:
        """How good a model is on rows that it had not seen."""
        return Response(Metrics(named.find(self.membership.organization, model_name)).data)

    @extend_schema(responses=Metrics(many=True))
    def list(self, request: Request) -> Response:
        """The same of every named model, by name."""
        versions = named.answering(self.membership.organization)
        page = self.paginate_queryset(versions.order_by("named__name"))
        return self.get_paginated_response(Metrics(page, many=True).data)
