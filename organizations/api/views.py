"""Organizations, their members and invites, for programs."""

from typing import Any, ClassVar, cast
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import Serializer
from rest_framework.views import APIView

from accounts.models import User
from accounts.pagination import Page
from organizations import (
    actions,
    deletion,
    exports,
    invites,
    quotas,
    service,
    trail,
    usage,
)
from organizations.access import active_membership
from organizations.api import serializers as said
from organizations.api.base import OrgAPIView
from organizations.files import file_response
from organizations.models import Membership, OrganizationExport, Role, ServiceToken


def read(serializer: type[Serializer[Any]], request: Request) -> dict[str, Any]:
    """What a request says, by the fields of a serializer alone: anything else is ignored."""
    form = serializer(data=request.data)
    form.is_valid(raise_exception=True)
    return dict(form.validated_data)


class Paged:
    """Answers page by page, as lists of view sets do."""

    pagination_class = Page

    def page(
        self, request: Request, found: QuerySet[Any], shape: type[Serializer[Any]]
    ) -> Response:
        pages = self.pagination_class()
        rows = pages.paginate_queryset(found, request)
        return pages.get_paginated_response(shape(rows, many=True).data)


class _PersonView(APIView):
    """For whoever is signed in, in an organization or not."""

    @property
    def person(self) -> User:
        return cast("User", self.request.user)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if header := request.headers.get("X-Organization"):
            active_membership(request.user, header=header)  # one's own, or it is an error


@extend_schema(tags=["organizations"])
class OrganizationsView(Paged, _PersonView):
    @extend_schema(responses=said.OrganizationOut(many=True))
    def get(self, request: Request) -> Response:
        """The organizations that you belong to, in the order in which you joined them."""
        mine = Membership.objects.filter(user=self.person).select_related("organization")
        return self.page(request, mine.order_by("joined_at", "pk"), said.OrganizationOut)

    @extend_schema(request=said.OrganizationName, responses={201: said.OrganizationOut})
    def post(self, request: Request) -> Response:
        """Make an organization. You are its admin."""
        wish = read(said.OrganizationName, request)
        made = actions.make_organization(self.person, name=wish["name"])
        return Response(said.OrganizationOut(made).data, 201)


@extend_schema(tags=["organizations"])
class JoinView(_PersonView):
    @extend_schema(
        request=said.Join, responses={200: said.OrganizationOut, 201: said.OrganizationOut}
    )
    def post(self, request: Request) -> Response:
        """Join by an invite code. 200 when you were a member already."""
        joined = invites.accept(self.person, read(said.Join, request)["code"])
        return Response(said.OrganizationOut(joined).data, 201 if joined.joined else 200)


@extend_schema(tags=["organizations"])
class OrganizationView(OrgAPIView):
    roles: ClassVar = {"get": Role.VIEWER, "patch": Role.ADMIN}

    @property
    def while_deleting(self) -> bool:  # type: ignore[override]
        return self.request.method == "GET"

    @extend_schema(responses=said.OrganizationOut)
    def get(self, request: Request, organization: UUID) -> Response:
        """One of your organizations."""
        return Response(said.OrganizationOut(self.membership).data)

    @extend_schema(request=said.OrganizationName, responses=said.OrganizationOut)
    def patch(self, request: Request, organization: UUID) -> Response:
        """Rename it."""
        wish = read(said.OrganizationName, request)
        self.membership.organization = actions.rename(self.membership, wish["name"])
        return Response(said.OrganizationOut(self.membership).data)


@extend_schema(tags=["organizations"])
class MembersView(Paged, OrgAPIView):
    roles: ClassVar = {"get": Role.VIEWER}

    @extend_schema(responses=said.Member(many=True))
    def get(self, request: Request, organization: UUID) -> Response:
        """Who is in it, with which role."""
        members = Membership.objects.filter(organization=organization).select_related("user")
        return self.page(request, members.order_by("joined_at", "pk"), said.Member)


@extend_schema(tags=["organizations"])
class MemberView(OrgAPIView):
    roles: ClassVar = {"patch": Role.ADMIN, "delete": Role.ADMIN}

    @extend_schema(request=said.RoleChange, responses=said.Member)
    def patch(self, request: Request, organization: UUID, user: UUID) -> Response:
        """Change a member's role. 409 for the last admin."""
        role = read(said.RoleChange, request)["role"]
        return Response(said.Member(actions.change_role(self.membership, user, role)).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, organization: UUID, user: UUID) -> Response:
        """Take a member out. The invite code goes too, since they may know it."""
        actions.remove_member(self.membership, user)
        return Response(status=204)


@extend_schema(tags=["organizations"])
class LeaveView(OrgAPIView):
    roles: ClassVar = {"post": Role.VIEWER}
    while_deleting = True
    people_only = True

    @extend_schema(request=None, responses={204: None})
    def post(self, request: Request, organization: UUID) -> Response:
        """Leave. 409 for the last admin."""
        actions.leave(self.membership)
        return Response(status=204)


@extend_schema(tags=["organizations"])
class TransferView(OrgAPIView):
    roles: ClassVar = {"post": Role.ADMIN}

    @extend_schema(request=said.Transfer, responses=said.Member)
    def post(self, request: Request, organization: UUID) -> Response:
        """Hand it over: another member becomes admin, and you developer."""
        user = read(said.Transfer, request)["user"]
        return Response(said.Member(actions.transfer(self.membership, user)).data)


@extend_schema(tags=["organizations"])
class InviteView(OrgAPIView):
    roles: ClassVar = {"get": Role.ADMIN, "post": Role.ADMIN, "delete": Role.ADMIN}

    @extend_schema(responses=said.InviteOut)
    def get(self, request: Request, organization: UUID) -> Response:
        """The code by which people join. 404 when it was withdrawn."""
        return Response(said.InviteOut(invites.current(self.membership)).data)

    @extend_schema(request=said.InviteWish, responses={201: said.InviteOut})
    def post(self, request: Request, organization: UUID) -> Response:
        """Make a new code in place of the one before, which opens nothing from then on."""
        made = invites.renew(self.membership, **read(said.InviteWish, request))
        return Response(said.InviteOut(made).data, 201)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, organization: UUID) -> Response:
        """Withdraw the code."""
        invites.withdraw(self.membership)
        return Response(status=204)


@extend_schema(tags=["organizations"])
class AuditView(Paged, OrgAPIView):
    roles: ClassVar = {"get": Role.ADMIN}

    @extend_schema(parameters=trail.PARAMETERS, responses=said.AuditLine(many=True))
    def get(self, request: Request, organization: UUID) -> Response:
        """What was done in the organization, by whom, from where and when; newest first."""
        return self.page(
            request, trail.found(self.membership, request.query_params), said.AuditLine
        )


@extend_schema(tags=["organizations"])
class AuditExportView(OrgAPIView):
    roles: ClassVar = {"get": Role.ADMIN}

    @extend_schema(parameters=trail.PARAMETERS, responses={(200, "text/csv"): bytes})
    def get(self, request: Request, organization: UUID) -> HttpResponse:
        """The same as CSV: the newest 50,000 that the filters leave."""
        return trail.as_csv(self.membership, request.query_params)


@extend_schema(tags=["organizations"])
class UsageView(OrgAPIView):
    roles: ClassVar = {"get": Role.VIEWER}

    @extend_schema(responses=said.UsageOut)
    def get(self, request: Request, organization: UUID) -> Response:
        """What the organization may use, what it uses, and what it used over time."""
        home = self.membership.organization
        answer = {"quotas": quotas.report(home), **usage.history(home)}
        return Response(said.UsageOut(answer).data)


@extend_schema(tags=["organizations"])
class ServiceTokensView(Paged, OrgAPIView):
    roles: ClassVar = {"get": Role.ADMIN, "post": Role.ADMIN}

    @extend_schema(responses=said.ServiceTokenOut(many=True))
    def get(self, request: Request, organization: UUID) -> Response:
        """The service tokens that aren't revoked, newest first."""
        found = ServiceToken.objects.of(self.membership.organization).filter(revoked_at=None)
        return self.page(request, found, said.ServiceTokenOut)

    @extend_schema(request=said.ServiceTokenWish, responses={201: said.MadeServiceToken})
    def post(self, request: Request, organization: UUID) -> Response:
        """Make a token. Its secret is in this answer and nowhere else."""
        token, secret = service.make(self.membership, **read(said.ServiceTokenWish, request))
        token.secret = secret  # type: ignore[attr-defined]
        return Response(said.MadeServiceToken(token).data, 201)


@extend_schema(tags=["organizations"])
class ServiceTokenView(OrgAPIView):
    roles: ClassVar = {"delete": Role.ADMIN}

    @extend_schema(responses={204: None})
    def delete(self, request: Request, organization: UUID, token: UUID) -> Response:
        """Revoke it, at once and for good."""
        service.revoke(self.membership, token)
        return Response(status=204)


@extend_schema(tags=["organizations"])
class ExportsView(Paged, OrgAPIView):
    roles: ClassVar = {"get": Role.ADMIN, "post": Role.ADMIN}
    while_deleting = people_only = True

    @extend_schema(responses=said.ExportOut(many=True))
    def get(self, request: Request, organization: UUID) -> Response:
        """Exports of everything that the organization has, newest first."""
        return self.page(
            request, OrganizationExport.objects.of(self.membership.organization), said.ExportOut
        )

    @extend_schema(request=None, responses={202: said.ExportOut})
    def post(self, request: Request, organization: UUID) -> Response:
        """Have one made. Watch the answer's address until its state is `ready`, then download."""
        export = exports.ask(self.membership)
        place = reverse("organization-export", args=[organization, export.pk])
        return Response(said.ExportOut(export).data, 202, headers={"Location": place})


class _ExportView(OrgAPIView):
    roles: ClassVar = {"get": Role.ADMIN, "delete": Role.ADMIN}
    while_deleting = people_only = True

    def export(self, pk: UUID) -> OrganizationExport:
        mine = OrganizationExport.objects.of(self.membership.organization)
        found: OrganizationExport = get_object_or_404(mine.select_related("organization"), pk=pk)
        return found


@extend_schema(tags=["organizations"])
class ExportView(_ExportView):
    @extend_schema(responses=said.ExportOut)
    def get(self, request: Request, organization: UUID, export: UUID) -> Response:
        """How far an export is."""
        return Response(said.ExportOut(self.export(export)).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, organization: UUID, export: UUID) -> Response:
        """Delete the file of an export, which counts as storage. It would expire by itself."""
        exports.discard(self.membership, self.export(export))
        return Response(status=204)


@extend_schema(tags=["organizations"])
class ExportDownloadView(_ExportView):
    @extend_schema(responses={(200, "application/zip"): bytes})
    def get(self, request: Request, organization: UUID, export: UUID) -> StreamingHttpResponse:
        """The zip: rows as JSON lines, and the files. 409 until it is ready."""
        file, name = exports.download(self.membership, self.export(export))
        return file_response(file, filename=name, content_type="application/zip")


@extend_schema(tags=["organizations"])
class DeletionView(OrgAPIView):
    roles: ClassVar = {"post": Role.ADMIN, "delete": Role.ADMIN}
    while_deleting = people_only = True

    @extend_schema(request=said.OrganizationName, responses={202: said.OrganizationOut})
    def post(self, request: Request, organization: UUID) -> Response:
        """Delete the organization after some days of grace; its name is typed again. All that runs
        is cancelled, and only restoring, leaving and exporting work until then."""
        name = read(said.OrganizationName, request)["name"]
        me = self.membership
        me.organization = deletion.ask(me, me.organization, name=name)
        return Response(said.OrganizationOut(me).data, 202)

    @extend_schema(responses=said.OrganizationOut)
    def delete(self, request: Request, organization: UUID) -> Response:
        """Take the deletion back."""
        self.membership.organization = deletion.restore(
            self.membership, self.membership.organization
        )
        return Response(said.OrganizationOut(self.membership).data)
