"""Pictures of named models, for programs and for people who open an address."""

import re
from typing import Any, ClassVar

from django.http import HttpResponse
from django.shortcuts import render
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response

from organizations.api.base import OrgAPIView
from organizations.models import Role
from training import pictures
from training.api.named import ADDRESS

_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,3})(?:$|[,;\s])")
PREFER = OpenApiParameter(
    "Prefer",
    str,
    OpenApiParameter.HEADER,
    description="wait=5 answers when it is done, if that is within so many seconds; RFC 7240.",
)


def wait_of(request: Request) -> float:
    """The seconds of ``Prefer: wait=5``; 0 without."""
    found = _WAIT.search(request.headers.get("Prefer", ""))
    return float(found[1]) if found else 0.0


class _Whatever(DefaultContentNegotiation):
    """Who asks for image/png alone gets it, though problems are JSON."""

    def select_renderer(self, request: Any, renderers: Any, format_suffix: Any = None) -> Any:
        return renderers[0], renderers[0].media_type


class Drawing(serializers.Serializer[Any]):
    detail = serializers.CharField()
    retry_after_s = serializers.IntegerField()


class _View(OrgAPIView):
    roles: ClassVar = {"get": Role.VIEWER}
    content_negotiation_class = _Whatever


@extend_schema(tags=["by name"])
class PictureView(_View):
    kind = ""
    told = "It is being drawn. Ask again in a moment."
    retry_s = 1

    @extend_schema(
        parameters=[ADDRESS, PREFER],
        responses={(200, "image/png"): OpenApiTypes.BINARY, 202: Drawing},
    )
    def get(self, request: Request, model_name: str) -> HttpResponse:
        """A curve of a model as PNG. 202 with Retry-After while it is drawn for the first time."""
        found = pictures.picture(self.membership, model_name, self.kind, wait_s=wait_of(request))
        if found is None:
            told = {"detail": self.told, "retry_after_s": self.retry_s}
            return Response(told, 202, headers={"Retry-After": str(self.retry_s)})
        answer = HttpResponse(found, content_type="image/png")
        # What a name means may change; the picture of a version does not.
        answer["Cache-Control"] = "private, max-age=60"
        return answer


class LearningCurveView(PictureView):
    """A node fits the model on ever more rows first, once; who asks first must be a developer."""

    kind = pictures.LEARNING_CURVE
    told = "A node fits the model on ever more rows. Ask again in a while."
    retry_s = 5


@extend_schema(tags=["by name"])
class PageView(_View):
    @extend_schema(responses={(200, "text/html"): OpenApiTypes.STR})
    def get(self, request: Request) -> HttpResponse:
        """One page with the curves of all named models; it needs no other file."""
        home = self.membership.organization
        cards, more = pictures.shown(home)
        shown = {"cards": cards, "more": more, "organization": home}
        return render(request, "training/curves.html", shown)
