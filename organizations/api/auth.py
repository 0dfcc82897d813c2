"""Registering and signing in. Registering makes a personal organization, so it stands here."""

from typing import Any

from django.conf import settings
from django.contrib.auth.models import update_last_login
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_simplejwt.serializers import TokenObtainPairSerializer
from rest_framework_simplejwt.tokens import RefreshToken
from rest_framework_simplejwt.views import TokenObtainPairView, TokenRefreshView

from accounts import limits
from accounts.models import User
from accounts.parsers import JSONParser
from organizations.actions import register
from organizations.forms import RegisterForm


class Registration(serializers.Serializer[Any]):
    username = serializers.CharField(max_length=150)
    email = serializers.EmailField()
    password = serializers.CharField(max_length=256, trim_whitespace=False, write_only=True)


class Tokens(serializers.Serializer[Any]):
    access = serializers.CharField()
    refresh = serializers.CharField()


class Account(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    username = serializers.CharField()
    email = serializers.EmailField()
    organization = serializers.UUIDField()
    tokens = Tokens()


class RegisterView(APIView):
    permission_classes = (AllowAny,)
    authentication_classes = ()

    @extend_schema(request=Registration, responses={201: Account}, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Make an account with a personal organization. The answer signs in already."""
        asked = Registration(data=request.data)
        asked.is_valid(raise_exception=True)
        form = RegisterForm(asked.validated_data)
        if not form.is_valid():
            errors = {field: [str(m) for m in said] for field, said in form.errors.items()}
            raise serializers.ValidationError(errors)
        limits.count_sign_up(request)
        user = register(**form.cleaned_data, allowed=settings.ALLOW_SIGNUP)
        return Response(
            {
                "id": user.pk,
                "username": user.username,
                "email": user.email,
                "organization": user.memberships.get().organization_id,
                "tokens": tokens_for(user),
            },
            201,
        )


def tokens_for(user: User) -> dict[str, str]:
    refresh = RefreshToken.for_user(user)
    return {"access": str(refresh.access_token), "refresh": str(refresh)}


class LoginSerializer(TokenObtainPairSerializer):
    def validate(self, attrs: dict[str, Any]) -> dict[str, str]:
        data = super().validate(attrs)
        update_last_login(None, self.user)  # type: ignore[arg-type]
        return data


@extend_schema(tags=["auth"])
class LoginView(TokenObtainPairView):
    """Trade a username and password (JSON or form) for an access and a refresh token."""

    serializer_class = LoginSerializer
    parser_classes = (JSONParser, FormParser, MultiPartParser)


@extend_schema(tags=["auth"])
class RefreshView(TokenRefreshView):
    """Trade a refresh token for a new access token."""
