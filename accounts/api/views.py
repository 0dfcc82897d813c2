"""The account of whoever calls. ``/api/auth/…``; registering and signing in stand in
organizations.api.auth."""

from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.generics import ListAPIView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_simplejwt.tokens import Token

from accounts import actions, jwt, limits, mail, second_factor
from accounts.models import BrowserSession, PersonalToken, Scope, SignIn, User
from accounts.permissions import SignedIn
from accounts.resets import reset_password, verify_email


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

    class Meta:
        model = PersonalToken
        fields = (*TokenSerializer.Meta.fields, "token")
        read_only_fields = fields


@extend_schema(tags=["auth"])
class TokensView(ListAPIView[PersonalToken]):
    """Personal API tokens."""

    permission_classes = (SignedIn,)
    serializer_class = TokenSerializer
    filter_backends = ()

    def get_queryset(self) -> QuerySet[PersonalToken]:
        if not isinstance(self.request.user, User):  # the schema is drawn by nobody
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
            _me(request),
            name=wanted["name"],
            scope=wanted["scope"],
            days=wanted["expires_in_days"],
            with_=request.auth,
            request=request,
        )
        token.token = secret  # type: ignore[attr-defined]
        return _secret(MadeTokenSerializer(token).data, 201)


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


# --- The password and the e-mail address ---------------------------------------------------------


def _password(**more: Any) -> serializers.CharField:
    return serializers.CharField(max_length=256, trim_whitespace=False, write_only=True, **more)


class NewPassword(serializers.Serializer[Any]):
    current_password = _password()
    new_password = _password()


class PasswordView(APIView):
    permission_classes = (SignedIn,)

    @extend_schema(request=NewPassword, responses={204: None}, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Set a new password. Every other sign-in ends, and this one too unless it is a page's:
        sign in again. API tokens go on."""
        asked = NewPassword(data=request.data)
        asked.is_valid(raise_exception=True)
        given, user = asked.validated_data, _me(request)
        actions.check_password(
            user, given["current_password"], field="current_password", request=request
        )
        actions.set_password(
            user, given["new_password"], field="new_password", keep=request, request=request
        )
        return Response(status=204)


class Address(serializers.Serializer[Any]):
    email = serializers.EmailField()


class _Open(APIView):
    permission_classes = (AllowAny,)
    authentication_classes = ()


class ForgottenView(_Open):
    @extend_schema(request=Address, responses={202: None}, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Have a link for a new password sent. The answer is the same for an unknown address."""
        asked = Address(data=request.data)
        asked.is_valid(raise_exception=True)
        limits.count_mail(request, asked.validated_data["email"])
        mail.later("reset", asked.validated_data["email"])
        return Response(status=202)


class Reset(serializers.Serializer[Any]):
    uid = serializers.CharField(max_length=64, help_text="As it stands in the link.")
    token = serializers.CharField(max_length=128, help_text="As it stands in the link.")
    password = _password()


class ResetView(_Open):
    @extend_schema(request=Reset, responses={204: None}, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Set the password with what stands in the link. Every sign-in ends; a second factor
        stays."""
        asked = Reset(data=request.data)
        asked.is_valid(raise_exception=True)
        reset_password(**asked.validated_data, request=request)
        return Response(status=204)


class ResendView(_Open):
    @extend_schema(request=Address, responses={202: None}, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Have the link that confirms an address sent again, if somebody waits for it."""
        asked = Address(data=request.data)
        asked.is_valid(raise_exception=True)
        limits.count_mail(request, asked.validated_data["email"])
        mail.later("verify_again", asked.validated_data["email"])
        return Response(status=202)


class Verification(serializers.Serializer[Any]):
    token = serializers.CharField(max_length=1000, help_text="As it stands in the link.")


class VerifyView(_Open):
    @extend_schema(request=Verification, responses={204: None}, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Confirm an e-mail address with what stands in the link."""
        asked = Verification(data=request.data)
        asked.is_valid(raise_exception=True)
        verify_email(asked.validated_data["token"], request=request)
        return Response(status=204)


# --- Sessions ------------------------------------------------------------------------------------


class SignInSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    kind = serializers.SerializerMethodField()
    device = serializers.CharField(source="device_name")
    address = serializers.IPAddressField(allow_null=True)
    created_at = serializers.DateTimeField()
    last_seen_at = serializers.DateTimeField()
    current = serializers.SerializerMethodField(help_text="Whether this very call came by it.")

    def get_kind(self, one: SignIn) -> str:
        return "browser" if isinstance(one, BrowserSession) else "api"

    def get_current(self, one: SignIn) -> bool:
        return _is_current(self.context["request"], one)


def _is_current(request: Request, one: SignIn) -> bool:
    if isinstance(one, BrowserSession):
        return request.auth is None and one.session_key == request.session.session_key
    return isinstance(request.auth, Token) and request.auth.get(jwt.FAMILY) == str(one.pk)


class SessionsView(APIView):
    permission_classes = (SignedIn,)

    @extend_schema(responses=SignInSerializer(many=True), tags=["auth"])
    def get(self, request: Request) -> Response:
        """Where you are signed in: browsers, and programs with a refresh token."""
        found = actions.sign_ins(_me(request))
        return Response(SignInSerializer(found, many=True, context={"request": request}).data)

    @extend_schema(responses={204: None}, tags=["auth"], operation_id="auth_sessions_end_all")
    def delete(self, request: Request) -> Response:
        """Sign out everywhere, here too. API tokens go on."""
        actions.end_all(_me(request), request=request)
        return Response(status=204)


class SessionView(APIView):
    permission_classes = (SignedIn,)

    @extend_schema(responses={204: None}, tags=["auth"])
    def delete(self, request: Request, session_id: UUID) -> Response:
        """Sign out one browser or program."""
        actions.end_sign_in(_me(request), session_id, request=request)
        return Response(status=204)


# --- The second factor ---------------------------------------------------------------------------


class FactorSerializer(serializers.Serializer[Any]):
    on = serializers.BooleanField()
    recovery_codes_left = serializers.IntegerField()


class Proof(serializers.Serializer[Any]):
    password = _password()


class SetupSerializer(serializers.Serializer[Any]):
    secret = serializers.CharField(help_text="To type into an authenticator; base 32.")
    uri = serializers.CharField(help_text="The same as otpauth://.")
    qr_svg = serializers.CharField(help_text="A picture of the uri.")


class Code(serializers.Serializer[Any]):
    code = serializers.CharField(max_length=40)


class RecoveryCodesSerializer(serializers.Serializer[Any]):
    recovery_codes = serializers.ListField(child=serializers.CharField())


def _proved(request: Request) -> User:
    """The caller, who has sent the password along."""
    asked = Proof(data=request.data)
    asked.is_valid(raise_exception=True)
    user = _me(request)
    actions.check_password(
        user, asked.validated_data["password"], field="password", request=request
    )
    return user


class FactorView(APIView):
    permission_classes = (SignedIn,)

    @extend_schema(responses=FactorSerializer, tags=["auth"])
    def get(self, request: Request) -> Response:
        """Whether signing in takes a code of an authenticator."""
        user = _me(request)
        left = second_factor.codes_left(user)
        return Response({"on": second_factor.is_on(user), "recovery_codes_left": left})

    @extend_schema(request=Proof, responses={201: SetupSerializer}, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Begin to set one up: add it to an authenticator, then send a code to `…/confirm`."""
        device = second_factor.begin(_proved(request))
        return _secret(second_factor.setup(device), 201)


class ConfirmFactorView(APIView):
    permission_classes = (SignedIn,)

    @extend_schema(request=Code, responses=RecoveryCodesSerializer, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Turn it on with a first code. The recovery codes are in this answer and nowhere else."""
        asked = Code(data=request.data)
        asked.is_valid(raise_exception=True)
        codes = second_factor.confirm(_me(request), asked.validated_data["code"], request=request)
        return _secret({"recovery_codes": codes})


class DisableFactorView(APIView):
    permission_classes = (SignedIn,)

    @extend_schema(request=Proof, responses={204: None}, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Turn it off: sign in by password alone again."""
        second_factor.turn_off(_proved(request), request=request)
        return Response(status=204)


class RecoveryCodesView(APIView):
    permission_classes = (SignedIn,)

    @extend_schema(request=Proof, responses=RecoveryCodesSerializer, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Ten new recovery codes; the old ones are void."""
        codes = second_factor.new_recovery_codes(_proved(request), request=request)
        return _secret({"recovery_codes": codes})


def _me(request: Request) -> User:
    assert isinstance(request.user, User)  # SignedIn saw to it
    return request.user


def _secret(data: Any, status: int = 200) -> Response:
    return Response(data, status, headers={"Cache-Control": "no-store"})
