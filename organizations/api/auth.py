"""Registering, signing in and who one is: they tell of organizations too, so they stand here."""

from typing import Any

from django.conf import settings
from django.contrib.auth import authenticate, logout
from django.contrib.auth.models import update_last_login
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_simplejwt.tokens import Token

from accounts import jwt, limits, second_factor
from accounts.actions import change_email, check_password, told
from accounts.errors import FlowError, Invalid
from accounts.models import AbstractToken, User
from accounts.permissions import SignedIn
from organizations.actions import register
from organizations.forms import RegisterForm
from organizations.models import Membership, Role

NO_ROLE = "The role was ignored: roles come from organizations, by an invite or from an admin."
CHECK_MAIL = "Open the link that was sent to your e-mail address, and sign in then."
BEARER = 'Bearer realm="api"'


class Unverified(FlowError):
    """The password was right, but the address has not been confirmed."""

    code = "email-unverified"
    status = 403


class Registration(serializers.Serializer[Any]):
    username = serializers.CharField(max_length=150)
    email = serializers.EmailField()
    password = serializers.CharField(max_length=256, trim_whitespace=False, write_only=True)
    invite_code = serializers.CharField(max_length=64, required=False, allow_blank=True)
    role = serializers.JSONField(
        required=False, allow_null=True, help_text="Ignored: roles come from organizations."
    )


class Tokens(serializers.Serializer[Any]):
    access = serializers.CharField()
    refresh = serializers.CharField()


class Account(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    username = serializers.CharField()
    email = serializers.EmailField()
    organization = serializers.UUIDField(help_text="The one that calls act for unless they say.")
    tokens = Tokens(allow_null=True, help_text="Null until the e-mail address is confirmed.")
    notices = serializers.ListField(child=serializers.CharField())


class _Open(APIView):
    """For people who are not signed in yet: credentials that come along are not looked at."""

    permission_classes = (AllowAny,)
    authentication_classes = ()

    def get_authenticate_header(self, request: Request) -> str:
        return BEARER  # or DRF would answer 403


class RegisterView(_Open):
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
        user = register(
            **form.cleaned_data,
            allowed=settings.ALLOW_SIGNUP,
            invite_code=asked.validated_data.get("invite_code", ""),
        )
        notices = [NO_ROLE] if asked.validated_data.get("role") is not None else []
        if user.awaits_verification:
            notices.append(CHECK_MAIL)
        first = user.memberships.order_by("joined_at", "pk")[0]
        answer = {
            "id": user.pk,
            "username": user.username,
            "email": user.email,
            "organization": first.organization_id,
            "tokens": None if user.awaits_verification else jwt.issue(user, request),
            "notices": notices,
        }
        return Response(answer, 201, headers={"Cache-Control": "no-store"})


class Credentials(serializers.Serializer[Any]):
    username = serializers.CharField(max_length=254, help_text="A name or an e-mail address.")
    password = serializers.CharField(max_length=256, trim_whitespace=False, write_only=True)
    otp = serializers.CharField(
        max_length=40,
        required=False,
        allow_blank=True,
        help_text="A code of the authenticator, or a recovery code, where the account has one.",
    )


class LoginView(_Open):
    @extend_schema(request=Credentials, responses=Tokens, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Trade a username and password (JSON or form) for an access and a refresh token.

        With a second factor the answer is 401 with the code `otp-required` until `otp` comes along.
        """
        asked = Credentials(data=request.data)
        asked.is_valid(raise_exception=True)
        given = asked.validated_data
        user = authenticate(request, username=given["username"], password=given["password"])
        if not isinstance(user, User):
            raise AuthenticationFailed(
                "This name and password do not go together.", "no-active-account"
            )
        if user.awaits_verification:
            raise Unverified(f"{CHECK_MAIL} POST /api/auth/email/resend sends another.")
        if second_factor.is_on(user):
            if not given.get("otp"):
                raise second_factor.OtpRequired("Send a code of your authenticator as otp, too.")
            second_factor.verify(user, given["otp"])
        update_last_login(None, user)  # type: ignore[arg-type]
        told(user, "signed-in", request=request)
        return Response(jwt.issue(user, request), headers={"Cache-Control": "no-store"})


class Refresh(serializers.Serializer[Any]):
    refresh = serializers.CharField(max_length=4096)


class RefreshView(_Open):
    @extend_schema(request=Refresh, responses=Tokens, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Trade a refresh token for a new pair. It is good once: one that comes back later has
        leaked, and ends its sign-in."""
        asked = Refresh(data=request.data)
        asked.is_valid(raise_exception=True)
        pair = jwt.rotate(asked.validated_data["refresh"], request)
        return Response(pair, headers={"Cache-Control": "no-store"})


class LogoutView(APIView):
    permission_classes = (AllowAny,)

    def perform_authentication(self, request: Request) -> None:
        """Only where it is needed: an access token may have expired before its refresh token."""

    @extend_schema(
        request={"application/json": Refresh},
        responses={204: None},
        tags=["auth"],
    )
    def post(self, request: Request) -> Response:
        """Sign out what has this refresh token; without one, what the request signs in with."""
        if isinstance(request.data, dict) and "refresh" in request.data:
            asked = Refresh(data=request.data)
            asked.is_valid(raise_exception=True)
            jwt.end(asked.validated_data["refresh"])
        elif isinstance(request.auth, Token):
            jwt.end_of(request.auth)
        elif isinstance(request.auth, AbstractToken):
            raise Invalid("An API token is not signed in. Revoke it under /api/auth/tokens.")
        elif request.user.is_authenticated:
            logout(request._request)
        else:
            raise NotAuthenticated
        return Response(status=204)


class Belongs(serializers.ModelSerializer[Membership]):
    id = serializers.UUIDField(source="organization_id", read_only=True)
    name = serializers.CharField(source="organization.name", read_only=True)
    role = serializers.SerializerMethodField()

    class Meta:
        model = Membership
        fields = ("id", "name", "role", "joined_at")

    def get_role(self, membership: Membership) -> str:
        return str(Role(membership.role).label)


class Me(serializers.ModelSerializer[User]):
    email_verified = serializers.SerializerMethodField()
    second_factor = serializers.SerializerMethodField()
    organizations = serializers.SerializerMethodField()
    notices = serializers.SerializerMethodField()
    password = serializers.CharField(
        max_length=256,
        trim_whitespace=False,
        write_only=True,
        required=False,
        help_text="Needed to change the e-mail address.",
    )

    class Meta:
        model = User
        fields = (
            "id",
            "username",
            "first_name",
            "last_name",
            "email",
            "email_verified",
            "is_staff",
            "second_factor",
            "mail_after_min",
            "date_joined",
            "organizations",
            "notices",
            "password",
        )
        read_only_fields = ("id", "username", "is_staff", "date_joined")

    def get_email_verified(self, user: User) -> bool:
        return user.email_verified_at is not None

    def get_second_factor(self, user: User) -> bool:
        return second_factor.is_on(user)

    def get_organizations(self, user: User) -> list[dict[str, Any]]:
        mine = user.memberships.select_related("organization").order_by("joined_at", "pk")
        return list(Belongs(mine, many=True).data)

    def get_notices(self, user: User) -> list[str]:
        return list(self.context.get("notices", []))


class MeView(APIView):
    permission_classes = (SignedIn,)

    @extend_schema(responses=Me, tags=["auth"])
    def get(self, request: Request) -> Response:
        """Who you are, and which organizations you belong to."""
        assert isinstance(request.user, User)  # SignedIn saw to it
        return Response(Me(request.user).data)

    @extend_schema(request=Me, responses=Me, tags=["auth"])
    def patch(self, request: Request) -> Response:
        """Change your name or your e-mail address. The address takes your password as well, and
        where addresses are confirmed it changes once the link that is sent there was opened."""
        user = request.user
        assert isinstance(user, User)
        asked = Me(user, data=request.data, partial=True)
        asked.is_valid(raise_exception=True)
        wanted = asked.validated_data
        notices = []
        email = wanted.pop("email", user.email)
        password = wanted.pop("password", "")
        if email != user.email:
            check_password(user, password, field="password", request=request)
            if change_email(user, email, request=request):
                notices.append(f"Open the link that was sent to {email}: it changes then.")
        for field, value in wanted.items():
            setattr(user, field, value)
        if wanted:
            user.save(update_fields=list(wanted))
        return Response(Me(user, context={"notices": notices}).data)
