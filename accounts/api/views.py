"""The account of whoever calls. ``/api/auth/…``; registering and signing in stand in
organizations.api.auth."""

from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import actions
from accounts.models import PersonalToken, Scope
from accounts.permissions import SignedIn


class TokenSerializer(serializers.ModelSerializer[PersonalToken]):
    class Meta:
        model = PersonalToken
        fields = (
            "id",
            "name",
            "scope",
            "hint",
            "created_at",
            "expires_at",
            "last_used_at",
            "last_used_from",
        )
        read_only_fields = fields


class NewTokenSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=80)
    scope = serializers.ChoiceField(choices=Scope.choices, default=Scope.READ)
    expires_in_days = serializers.IntegerField(min_value=1, max_value=365, default=90)


class MadeTokenSerializer(TokenSerializer):
    token = serializers.CharField(read_only=True, help_text="The secret. It is shown this once.")

    class Meta(TokenSerializer.Meta):
        fields = (*TokenSerializer.Meta.fields, "token")
        read_only_fields = fields


@extend_schema(tags=["auth"])
class TokensView(ListAPIView[PersonalToken]):
    """Personal API tokens."""

    permission_classes = (SignedIn,)
    serializer_class = TokenSerializer
    filter_backends = ()

    def get_queryset(self) -> QuerySet[PersonalToken]:
        if getattr(self, "swagger_fake_view", False):
            return PersonalToken.objects.none()
        mine = PersonalToken.objects.filter(user=self.request.user, revoked_at=None)
        return mine.order_by("-created_at", "pk")

    @extend_schema(request=NewTokenSerializer, responses={201: MadeTokenSerializer})
    def post(self, request: Request) -> Response:
        """Make a token. Its secret is in this answer and nowhere else."""
        asked = NewTokenSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        wanted = asked.validated_data
        token, secret = actions.make_token(
            request.user,  # type: ignore[arg-type]
            name=wanted["name"],
            scope=wanted["scope"],
            days=wanted["expires_in_days"],
            with_=request.auth,
            request=request,
        )
        token.token = secret  # type: ignore[attr-defined]
        answer = Response(MadeTokenSerializer(token).data, 201)
        answer["Cache-Control"] = "no-store"
        return answer


class TokenView(APIView):
    permission_classes = (SignedIn,)

    def _mine(self, request: Request, token_id: UUID) -> PersonalToken:
        return get_object_or_404(PersonalToken, pk=token_id, user=request.user, revoked_at=None)

    @extend_schema(responses=TokenSerializer, tags=["auth"])
    def get(self, request: Request, token_id: UUID) -> Response:
        """One of your tokens, without its secret."""
        return Response(TokenSerializer(self._mine(request, token_id)).data)

    @extend_schema(responses={204: None}, tags=["auth"])
    def delete(self, request: Request, token_id: UUID) -> Response:
        """Revoke a token, at once and for good."""
        token = self._mine(request, token_id)
        token.user = request.user  # type: ignore[assignment]
        actions.revoke_token(token, request=request)
        return Response(status=204)
