"""The JSON face of data sets."""

from typing import Any, ClassVar
from uuid import UUID

from django.http import HttpResponseBase
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework.decorators import action
from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.errors import NotFound
from accounts.parsers import JSONParser
from datasets import actions, related
from datasets.api import serializers as shapes
from datasets.models import Dataset, DatasetVersion
from datasets.samples import SAMPLES
from datasets.uploads import picture_response, take
from organizations.api.base import OrgAPIView, OrgViewSet
from organizations.models import Role
from workers.files import file_response

WHICH = OpenApiParameter("version", UUID, description="A version's id; the latest by default.")


@extend_schema(tags=["datasets"])
class DatasetViewSet(OrgViewSet):
    """Tables, in versions."""

    queryset = Dataset.objects.select_related("latest").defer(
        "latest__columns", "latest__associations"
    )
    serializer_class = shapes.DatasetBrief
    parser_classes = (MultiPartParser, JSONParser, FormParser)
    lookup_value_converter = "uuid"
    filterset_fields = ("state",)
    search_fields = ("name", "description")
    ordering_fields = ("name", "created_at", "updated_at", "latest__rows", "latest__size_bytes")
    roles: ClassVar = {
        "list": Role.VIEWER,
        "retrieve": Role.VIEWER,
        "partial_update": Role.DEVELOPER,
        "destroy": Role.DEVELOPER,
        "upload": Role.DEVELOPER,
        "preview": Role.VIEWER,
        "image": Role.VIEWER,
        "stats": Role.VIEWER,
        "associations": Role.VIEWER,
        "versions": Role.VIEWER,
        "add_version": Role.DEVELOPER,
        "rejects": Role.VIEWER,
    }

    def list(self, request: Request) -> Response:
        """The organization's data sets, newest first."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(shapes.DatasetBrief(page, many=True).data)

    @extend_schema(responses=shapes.DatasetFull)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One data set with its columns, and how far its newest version has been read."""
        return Response(self._full(self._dataset(pk)))

    @extend_schema(request=shapes.Change, responses=shapes.DatasetFull)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Rename, describe, or change the roles of columns of the latest version."""
        asked = shapes.Change(data=request.data)
        asked.is_valid(raise_exception=True)
        actions.change_dataset(self.membership, self._dataset(pk), **asked.validated_data)
        return Response(self._full(self._dataset(pk)))

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Delete a data set with all its versions. 409 while a running job uses it."""
        actions.delete_dataset(self.membership.name, self._dataset(pk))
        return Response(status=204)

    @extend_schema(request=shapes.Upload, responses={202: shapes.DatasetFull})
    @action(detail=False, methods=["post"])
    def upload(self, request: Request) -> Response:
        """Upload CSV, TSV, JSON Lines (plain, gzip or zstd), Parquet, Excel, or a zip of one folder
        of pictures per class (columns `image` and `label`), as a new data set.

        A node reads it: watch the answer's address, or the topic `dataset:<id>`, until the state is
        `ready` or `failed`.
        """
        said = shapes.Upload(data=request.data)
        said.is_valid(raise_exception=True)
        dataset = actions.upload(
            self.membership,
            take(request),
            name=said.validated_data["name"],
            description=said.validated_data["description"],
            options=said.options,
        )
        return self._accepted(dataset.pk)

    @extend_schema(parameters=[shapes.PreviewAsked, WHICH], responses=shapes.Preview, filters=False)
    @action(detail=True)
    def preview(self, request: Request, pk: UUID) -> Response:
        """Some rows, as they are stored."""
        asked = shapes.PreviewAsked(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        version = self._version(pk)
        rows = actions.preview(version, **asked.validated_data)
        return Response(
            {
                "version": version.pk,
                "total": version.rows,
                "offset": asked.validated_data["offset"],
                "columns": version.column_names,
                "rows": rows,
            }
        )

    @extend_schema(
        parameters=[shapes.ImageAsked, WHICH],
        responses={(200, "image/jpeg"): bytes, (200, "image/png"): bytes},
        filters=False,
    )
    @action(detail=True)
    def image(self, request: Request, pk: UUID) -> HttpResponseBase:
        """One picture of a column of pictures, as it is stored: JPEG or PNG."""
        asked = shapes.ImageAsked(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        return picture_response(*actions.picture(self._version(pk), **asked.validated_data))

    @extend_schema(parameters=[WHICH], responses=shapes.Stats, filters=False)
    @action(detail=True)
    def stats(self, request: Request, pk: UUID) -> Response:
        """What is known of each column: role, missing, distinct, quantiles, histogram, top."""
        version = self._version(pk)
        return Response({"version": version.pk, "rows": version.rows, "columns": version.columns})

    @extend_schema(
        parameters=[shapes.AssociationsAsked, WHICH], responses=shapes.Associations, filters=False
    )
    @action(detail=True)
    def associations(self, request: Request, pk: UUID) -> Response:
        """What each two columns have to do with each other, the strongest first: Spearman's and
        Pearson's correlation of numbers, Cramer's V of categories (bias-corrected), the correlation
        ratio (corrected) of one with the other. With `column`, the pairs with that one alone.
        """
        asked = shapes.AssociationsAsked(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        version = self._version(pk)
        told = related.listed(version.associations, asked.validated_data["column"])
        return Response({"version": version.pk, **told})

    @extend_schema(responses=shapes.VersionBrief(many=True), filters=False)
    @action(detail=True)
    def versions(self, request: Request, pk: UUID) -> Response:
        """All versions, newest first."""
        found = self._dataset(pk).versions.defer("columns", "associations").order_by("-number")
        page = self.paginate_queryset(found)
        return self.get_paginated_response(shapes.VersionBrief(page, many=True).data)

    @extend_schema(request=shapes.VersionUpload, responses={202: shapes.DatasetFull})
    @versions.mapping.post
    def add_version(self, request: Request, pk: UUID) -> Response:
        """Upload the next version. Models remember which one they were trained on."""
        dataset = self._dataset(pk)
        said = shapes.VersionUpload(data=request.data)
        said.is_valid(raise_exception=True)
        actions.add_version(self.membership, dataset, take(request), options=said.options)
        return self._accepted(pk)

    @extend_schema(parameters=[WHICH], responses={(200, "text/csv"): bytes}, filters=False)
    @action(detail=True)
    def rejects(self, request: Request, pk: UUID) -> HttpResponseBase:
        """The rows that did not fit: line number, reason and the line, as CSV."""
        version = self._version(pk)
        if version.rejects is None:
            raise NotFound("Every row of this version did fit: there are no rejects.")
        name = f"{version.dataset.name}-rejects.csv"
        return file_response(version.rejects.file, filename=name, content_type="text/csv")

    def _dataset(self, pk: UUID) -> Dataset:
        found: Dataset = get_object_or_404(
            Dataset.objects.of(self.membership.organization).select_related("latest"), pk=pk
        )
        return found

    def _version(self, pk: UUID) -> DatasetVersion:
        found = DatasetVersion.objects.of(self.membership.organization).select_related(
            "dataset", "data", "rejects"
        )
        wanted = self.request.query_params.get("version")
        if not wanted:
            latest = self._dataset(pk).latest_id
            if latest is None:
                raise NotFound("No version of this data set is ready yet.")
            return get_object_or_404(found, pk=latest)
        try:
            return get_object_or_404(found, dataset=pk, pk=UUID(wanted))
        except ValueError:
            raise NotFound("There is no version with this id.") from None

    def _full(self, dataset: Dataset) -> dict[str, Any]:
        newest = dataset.versions.select_related("task").defer("columns", "associations")
        told = {"newest": newest.order_by("-number").first()}
        return dict(shapes.DatasetFull(dataset, context=told).data)

    def _accepted(self, pk: UUID) -> Response:
        location = self.request.build_absolute_uri(f"/api/datasets/{pk}")
        return Response(self._full(self._dataset(pk)), 202, headers={"Location": location})


@extend_schema_view(get=extend_schema(responses=shapes.SampleInfo(many=True)))
@extend_schema(tags=["datasets"])
class SamplesView(OrgAPIView):
    roles: ClassVar = {"get": Role.VIEWER}

    def get(self, request: Request) -> Response:
        """The tables that ship with FlowML."""
        return Response(shapes.SampleInfo(list(SAMPLES.values()), many=True).data)


@extend_schema(tags=["datasets"])
class SampleView(OrgAPIView):
    roles: ClassVar = {"post": Role.DEVELOPER}

    @extend_schema(request=None, responses={202: shapes.DatasetBrief})
    def post(self, request: Request, key: str) -> Response:
        """Load a sample as a data set of the organization."""
        dataset = actions.load_sample(self.membership, key)
        location = request.build_absolute_uri(f"/api/datasets/{dataset.pk}")
        return Response(shapes.DatasetBrief(dataset).data, 202, headers={"Location": location})
