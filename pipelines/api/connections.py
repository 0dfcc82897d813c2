"""Connections, for programs."""

from typing import Any, ClassVar
from uuid import UUID

from django.urls import path, reverse
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.errors import NotFound
from organizations.api.base import OrgViewSet
from organizations.models import Role
from pipelines import connecting, kinds
from pipelines.models import NAME, Connection

_SETTINGS = (
    "postgres: host, port, database, user, sslmode. duckdb: none. ssh: host, port, user, host_key, "
    "folder. s3: host, port, bucket, region, folder, tls. hdfs: host, port, user, folder, tls. "
    "local: folder. These four: chunk_mib, workers, retries, verify, too."
)
_SECRETS = (
    "postgres: password. ssh: private_key, passphrase. s3: access_key, secret_key. hdfs: token. "
    "They are kept encrypted, and never shown again."
)
KINDS = [(key, kind.title) for key, kind in kinds.KINDS.items()]


class NewConnection(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=63, validators=[NAME])
    kind = serializers.ChoiceField(choices=KINDS)
    settings = serializers.DictField(required=False, help_text=_SETTINGS)
    secrets = serializers.DictField(required=False, help_text=_SECRETS)


class ConnectionChange(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=63, validators=[NAME], required=False)
    settings = serializers.DictField(
        required=False, help_text=f"Those that are given are changed. {_SETTINGS}"
    )
    secrets = serializers.DictField(
        required=False, help_text=f"Those that are given are changed; null forgets one. {_SECRETS}"
    )


class TestShown(serializers.Serializer[Any]):
    __test__ = False

    task = serializers.UUIDField()
    state = serializers.CharField(help_text="waiting, running, works or fails.")
    sentence = serializers.CharField(help_text="What was found, or what to change.")
    at = serializers.DateTimeField()


class ConnectionShown(serializers.ModelSerializer[Connection]):
    secrets = serializers.ListField(
        source="sealed_names", child=serializers.CharField(), help_text="Names alone."
    )
    last_test = serializers.SerializerMethodField()

    class Meta:
        model = Connection
        fields = (
            "id", "name", "kind", "settings", "secrets", "last_test", "created_at", "changed_at",
        )  # fmt: skip

    @extend_schema_field(TestShown(allow_null=True))
    def get_last_test(self, one: Connection) -> Any:
        tested = self.context["tests"].get(one.pk)
        return TestShown(tested).data if tested else None


def shown(connections: list[Connection]) -> list[dict[str, Any]]:
    """Connections as they are answered, with their last tests: one query for all."""
    context = {"tests": connecting.last_tests(connections)}
    return list(ConnectionShown(connections, many=True, context=context).data)


@extend_schema(tags=["connections"])
class ConnectionViewSet(OrgViewSet):
    """Ways out of the house: warehouses that pipelines read from and write to."""

    roles: ClassVar = {
        "list": Role.VIEWER,
        "retrieve": Role.VIEWER,
        "tested": Role.VIEWER,
        "test": Role.DEVELOPER,
        "create": Role.ADMIN,
        "partial_update": Role.ADMIN,
        "destroy": Role.ADMIN,
    }
    queryset = Connection.objects.all()
    serializer_class = ConnectionShown
    search_fields = ("name",)
    ordering_fields = ("name", "kind", "created_at")
    ordering = ("name",)

    @extend_schema(responses=ConnectionShown(many=True))
    def list(self, request: Request) -> Response:
        """The organization's connections, by name. Of secrets only the names are told."""
        page: Any = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(shown(page))

    @extend_schema(responses=ConnectionShown)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One connection, with how its last test went."""
        return Response(shown([self.get_object()])[0])

    @extend_schema(request=NewConnection, responses={201: ConnectionShown})
    def create(self, request: Request) -> Response:
        """Make a connection. Where it may lead, the operator says (FLOWML_REACH)."""
        form = NewConnection(data=request.data)
        form.is_valid(raise_exception=True)
        made = connecting.make(self.membership, **form.validated_data)
        answer = Response(shown([made])[0], 201)
        answer["Location"] = reverse("connection", args=[made.pk])
        return answer

    @extend_schema(request=ConnectionChange, responses=ConnectionShown)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change what is sent, and leave the rest. Another host or port wants its secrets anew."""
        form = ConnectionChange(data=request.data)
        form.is_valid(raise_exception=True)
        changed = connecting.change(self.membership, self.get_object(), **form.validated_data)
        return Response(shown([changed])[0])

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Forget it, with its secrets. 409 while a pipeline uses it."""
        connecting.delete(self.membership, self.get_object())
        return Response(status=204)

    @extend_schema(request=None, responses={202: TestShown})
    def test(self, request: Request, pk: UUID) -> Response:
        """Let a node reach it. Ask the same address by GET for how it went: seconds, mostly."""
        one = self.get_object()
        answer = Response(TestShown(connecting.test(self.membership, one)).data, 202)
        answer["Location"] = reverse("connection-test", args=[one.pk])
        return answer

    @extend_schema(responses=TestShown)
    def tested(self, request: Request, pk: UUID) -> Response:
        """How its last test went, in a sentence. 404 if there was none."""
        one = self.get_object()
        found = connecting.last_tests([one]).get(one.pk)
        if found is None:
            raise NotFound("It was not tested yet.")
        return Response(TestShown(found).data)


_view = ConnectionViewSet.as_view
_both: dict[str, Any] = {"get": "list", "post": "create"}
_one: dict[str, Any] = {"get": "retrieve", "patch": "partial_update", "delete": "destroy"}
_test: dict[str, Any] = {"get": "tested", "post": "test"}

urlpatterns: list[Any] = [
    path("connections", _view(_both), name="connections"),
    # As some write it; the same, so it stands in the schema once.
    path("connections/", _view(_both, schema=None)),
    path("connections/<uuid:pk>", _view(_one), name="connection"),
    path("connections/<uuid:pk>/test", _view(_test), name="connection-test"),
]
