"""Signing in and out, and the pages of one's own account."""

import time
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView, LogoutView, redirect_to_login
from django.core.exceptions import PermissionDenied
from django.forms import Form
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.utils.safestring import mark_safe
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts import actions, languages, limits, mail, second_factor
from accounts.errors import FlowError
from accounts.forms import (
    AddressForm,
    CodeForm,
    EmailForm,
    MailForm,
    PasswordForm,
    ProfileForm,
    ProofForm,
    ResetForm,
    SignInForm,
    TokenForm,
    styled,
)
from accounts.models import BrowserSession, PersonalToken, Scope, User
from accounts.resets import owner_of_link, reset_password, verify_email

SIGNING_IN = "signing-in"  # in the session: whose password was right, until the code is too
CODE_WITHIN_S = 10 * 60

secret_form = sensitive_post_parameters("password", "current_password", "new_password", "code")


def _refused(form: Form, problem: FlowError) -> int:
    """Put what went wrong beside the fields that are to blame; the status of the page."""
    for field, texts in problem.errors.items():
        form.add_error(field if field in form.fields else None, list(texts))
    if not problem.errors:
        form.add_error(None, problem.detail)
    return 429 if problem.status == 429 else 422


def _page(
    request: HttpRequest,
    template: str,
    context: dict[str, Any],
    *,
    problem: FlowError | None = None,
    status: int = 200,
) -> HttpResponse:
    response = render(request, template, context, status=status)
    if problem is not None and (wait := problem.extra.get("retry_after_s")):
        response["Retry-After"] = str(wait)
    return response


# --- Signing in ----------------------------------------------------------------------------------


@method_decorator(require_http_methods(["GET", "POST"]), name="dispatch")
class SignIn(LoginView):
    """Sign in and go where the person wanted to go (``next``, on this host alone)."""

    template_name = "accounts/sign_in.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        user = form.get_user()
        if not second_factor.is_on(user):
            answer = super().form_valid(form)
            actions.told(user, "signed-in", request=self.request)
            return answer
        self.request.session[SIGNING_IN] = {
            "user": str(user.pk),
            "password": user.get_session_auth_hash(),  # a new one starts anew
            "until": time.time() + CODE_WITHIN_S,
            "next": self.get_success_url(),
        }
        return redirect("accounts:code")

    def form_invalid(self, form: AuthenticationForm) -> HttpResponse:
        assert isinstance(form, SignInForm)
        response = super().form_invalid(form)
        if form.too_many is not None:
            response.status_code = form.too_many.status
            response["Retry-After"] = str(form.too_many.extra["retry_after_s"])
        return response

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(**kwargs)
        styled(context["form"])
        context["allow_signup"] = settings.ALLOW_SIGNUP
        return context


@never_cache
@secret_form
@require_http_methods(["GET", "POST"])
def code(request: HttpRequest) -> HttpResponse:
    """The second step of signing in, for who has turned on a second factor."""
    user = _halfway(request)
    if user is None:
        request.session.pop(SIGNING_IN, None)
        return redirect("accounts:sign-in")
    form = CodeForm(request.POST if request.method == "POST" else None)
    problem, status = None, 200
    if form.is_valid():
        try:
            second_factor.verify(user, form.cleaned_data["code"])
        except FlowError as error:
            problem, status = error, _refused(form, error)
        else:
            wanted = request.session.pop(SIGNING_IN)["next"]
            login(request, user)
            actions.told(user, "signed-in", request=request)
            return redirect(wanted)
    elif form.is_bound:
        status = 422
    return _page(
        request, "accounts/code.html", {"form": styled(form)}, problem=problem, status=status
    )


def _halfway(request: HttpRequest) -> User | None:
    """Whose password this session has shown a moment ago."""
    begun = request.session.get(SIGNING_IN)
    if not begun or begun["until"] < time.time():
        return None
    user = User.objects.filter(pk=begun["user"], is_active=True).first()
    same = user is not None and user.get_session_auth_hash() == begun["password"]
    return user if same else None


class SignOut(LogoutView):
    """Sign out by POST; a GET would let any page's picture tag do it."""

    http_method_names = ["post", "options"]


@require_http_methods(["GET", "POST"])
def console_sign_in(request: HttpRequest) -> HttpResponse:
    """The operator's console has no sign-in of its own: one way in, with one second factor."""
    if request.user.is_authenticated and not request.user.is_staff:
        raise PermissionDenied("The console is for the operators of this installation.")
    return redirect_to_login(request.GET.get("next") or reverse("admin:index"))


# --- A forgotten password, an address to confirm -------------------------------------------------


@require_http_methods(["GET", "POST"])
def forgotten(request: HttpRequest) -> HttpResponse:
    """Have a link sent. What the page says is the same for an unknown address."""
    return _by_mail(request, "reset")


@require_http_methods(["GET", "POST"])
def resend(request: HttpRequest) -> HttpResponse:
    """Have the link that confirms an address sent again."""
    return _by_mail(request, "verify_again", confirms=True)


def _by_mail(request: HttpRequest, what: str, *, confirms: bool = False) -> HttpResponse:
    form = AddressForm(request.POST if request.method == "POST" else None)
    problem, status, sent = None, 422 if form.errors else 200, ""
    if form.is_valid():
        try:
            limits.count_mail(request, form.cleaned_data["email"])
            mail.later(what, form.cleaned_data["email"])
            sent = form.cleaned_data["email"]
        except FlowError as error:
            problem, status = error, _refused(form, error)
    context = {"form": styled(form), "sent": sent, "confirms": confirms}
    return _page(request, "accounts/by_mail.html", context, problem=problem, status=status)


@never_cache
@secret_form
@require_http_methods(["GET", "POST"])
def reset(request: HttpRequest) -> HttpResponse:
    """Where the link for a new password leads. Its secret stands in the query, which no log has."""
    uid, token = request.GET.get("uid", ""), request.GET.get("token", "")
    if owner_of_link(uid, token) is None:
        return render(request, "accounts/link_used.html", status=404)
    form = ResetForm(request.POST if request.method == "POST" else None)
    status = 422 if form.errors else 200
    if form.is_valid():
        try:
            reset_password(
                uid=uid, token=token, password=form.cleaned_data["password"], request=request
            )
        except FlowError as error:
            status = _refused(form, error)
        else:
            messages.success(request, "Your password is set. Sign in with it.")
            return redirect("accounts:sign-in")
    return _page(request, "accounts/reset.html", {"form": styled(form)}, status=status)


@never_cache
@require_http_methods(["GET", "POST"])
def verify(request: HttpRequest) -> HttpResponse:
    """Where the link that confirms an address leads. A button does it: programs that look through
    mail open links, too."""
    token = request.GET.get("token", "")
    found = mail.read_verification(token)
    if found is None:
        return render(request, "accounts/link_used.html", {"confirms": True}, status=404)
    if request.method == "POST":
        try:
            verify_email(token, request=request)
        except FlowError as error:
            messages.error(request, error.detail)
        else:
            messages.success(request, f"{found[1]} is confirmed.")
        return redirect("accounts:profile" if request.user.is_authenticated else "accounts:sign-in")
    return render(request, "accounts/verify.html", {"name": found[0], "email": found[1]})


# --- One's own account ---------------------------------------------------------------------------


def _account(
    request: HttpRequest,
    tab: str,
    context: dict[str, Any],
    *,
    problem: FlowError | None = None,
    status: int = 200,
) -> HttpResponse:
    """A page of the account. It may show secrets: nothing keeps it."""
    for name, form in context.items():
        if isinstance(form, Form):
            context[name] = styled(form)
    response = _page(
        request,
        f"accounts/{tab}.html",
        {"section": "account", "tab": tab, **context},
        problem=problem,
        status=status,
    )
    response["Cache-Control"] = "no-store"
    return response


def _person(request: HttpRequest) -> User:
    assert isinstance(request.user, User)  # login_required saw to it
    return request.user


@secret_form
@login_required
@require_http_methods(["GET", "POST"])
def profile(request: HttpRequest) -> HttpResponse:
    """Name, e-mail address and what is written to it."""
    user = _person(request)
    if (language := request.POST.get("language")) in dict(settings.LANGUAGES):
        saved = redirect("accounts:profile")
        languages.choose(saved, str(language))
        return saved
    names = {"first_name": user.first_name, "last_name": user.last_name}
    data = request.POST if request.method == "POST" else None
    changes = next((key for key in ("email", "mail_after_min") if data and key in data), "")
    form = ProfileForm(None if changes else data, initial=names)
    email_form = EmailForm(data if changes == "email" else None, initial={"email": user.email})
    minutes = "" if user.mail_after_min is None else user.mail_after_min
    mail_form = MailForm(
        data if changes == "mail_after_min" else None, initial={"mail_after_min": minutes}
    )
    email_form.fields["email"].widget.attrs["autocomplete"] = "email"
    wrong = form.errors or email_form.errors or mail_form.errors
    problem, status = None, 422 if wrong else 200
    if form.is_valid():
        user.first_name, user.last_name = form.cleaned_data.values()
        user.save(update_fields=["first_name", "last_name"])
        messages.success(request, "Your name is saved.")
        return redirect("accounts:profile")
    if mail_form.is_valid():
        user.mail_after_min = mail_form.cleaned_data["mail_after_min"]
        user.save(update_fields=["mail_after_min"])
        messages.success(request, "That is saved.")
        return redirect("accounts:profile")
    if email_form.is_valid():
        try:
            wanted = email_form.cleaned_data
            actions.check_password(user, wanted["password"], field="password", request=request)
            if actions.change_email(user, wanted["email"], request=request):
                messages.info(request, f"Open the link that was sent to {wanted['email']}.")
            else:
                messages.success(request, "Your address is saved.")
            return redirect("accounts:profile")
        except FlowError as error:
            problem, status = error, _refused(email_form, error)
    context = {
        "form": form,
        "email_form": email_form,
        "mail_form": mail_form,
        "verifies": settings.REQUIRE_VERIFIED_EMAIL,
    }
    return _account(request, "profile", context, problem=problem, status=status)


@secret_form
@login_required
@require_http_methods(["GET", "POST"])
def password(request: HttpRequest) -> HttpResponse:
    """A new password; every other sign-in ends."""
    user = _person(request)
    form = PasswordForm(request.POST if request.method == "POST" else None)
    problem, status = None, 422 if form.errors else 200
    if form.is_valid():
        given = form.cleaned_data
        try:
            actions.check_password(
                user, given["current_password"], field="current_password", request=request
            )
            actions.set_password(
                user, given["new_password"], field="new_password", keep=request, request=request
            )
        except FlowError as error:
            problem, status = error, _refused(form, error)
        else:
            messages.success(request, "Your password is changed. You are signed in only here now.")
            return redirect("accounts:password")
    return _account(request, "password", {"form": form}, problem=problem, status=status)


@login_required
@require_http_methods(["GET", "POST"])
def tokens(request: HttpRequest) -> HttpResponse:
    """Personal API tokens. The page that answers a form shows the secret, this once."""
    user = _person(request)
    form = TokenForm(request.POST if request.method == "POST" else None)
    problem, status, secret = None, 422 if form.errors else 200, ""
    if form.is_valid():
        wanted = form.cleaned_data
        try:
            _, secret = actions.make_token(
                user,
                name=wanted["name"],
                scope=Scope(wanted["scope"]),
                days=wanted["days"],
                request=request,
            )
            form = TokenForm()
        except FlowError as error:
            problem, status = error, _refused(form, error)
    mine = PersonalToken.objects.filter(user=user, revoked_at=None).order_by("-created_at", "pk")
    context = {"form": form, "tokens": mine, "secret": secret}
    return _account(request, "tokens", context, problem=problem, status=status)


@login_required
@require_POST
def revoke(request: HttpRequest, token_id: UUID) -> HttpResponse:
    token = get_object_or_404(PersonalToken, pk=token_id, user=request.user, revoked_at=None)
    actions.revoke_token(token, request=request)
    messages.success(request, f"The token {token.name} opens nothing any more.")
    return redirect("accounts:tokens")


@login_required
@require_GET
def sessions(request: HttpRequest) -> HttpResponse:
    """Where one is signed in."""
    key = request.session.session_key
    found = [
        {
            "is": one,
            "browser": isinstance(one, BrowserSession),
            "current": isinstance(one, BrowserSession) and one.session_key == key,
        }
        for one in actions.sign_ins(_person(request))
    ]
    return _account(request, "sessions", {"sessions": found})


@login_required
@require_POST
def end_session(request: HttpRequest, session_id: UUID) -> HttpResponse:
    try:
        actions.end_sign_in(_person(request), session_id, request=request)
    except FlowError:
        return render(request, "404.html", status=404)
    messages.success(request, "Signed out there.")
    return redirect("accounts:sessions")


@login_required
@require_POST
def end_sessions(request: HttpRequest) -> HttpResponse:
    """Sign out everywhere else; the API ends this session, too."""
    actions.end_all(_person(request), but=request, request=request)
    messages.success(request, "You are signed in only here now. API tokens go on.")
    return redirect("accounts:sessions")


@secret_form
@login_required
@require_http_methods(["GET", "POST"])
def factor(request: HttpRequest) -> HttpResponse:
    """The second factor: set it up, look at it, turn it off. ``do`` says which, and a password
    comes with each but the first code."""
    user = _person(request)
    problem, status = None, 200
    codes: list[str] = []
    proof, first_code = ProofForm(), CodeForm()
    what = request.POST.get("do", "") if request.method == "POST" else ""
    if what == "confirm":
        first_code = CodeForm(request.POST)
        if first_code.is_valid():
            try:
                given = first_code.cleaned_data["code"].replace(" ", "")
                codes = second_factor.confirm(user, given, request=request)
            except FlowError as error:
                problem, status = error, _refused(first_code, error)
    elif what:
        proof = ProofForm(request.POST)
        if proof.is_valid():
            try:
                actions.check_password(
                    user, proof.cleaned_data["password"], field="password", request=request
                )
                if what == "begin":
                    second_factor.begin(user)
                elif what == "codes":
                    codes = second_factor.new_recovery_codes(user, request=request)
                elif what == "off":
                    second_factor.turn_off(user, request=request)
                    messages.success(request, "The second factor is off.")
                if not codes:
                    return redirect("accounts:factor")
            except FlowError as error:
                problem, status = error, _refused(proof, error)
    if first_code.errors or proof.errors:
        status = max(status, 422)
    device = second_factor.pending(user)
    setup: dict[str, Any] = second_factor.setup(device) if device else {}
    if setup:
        setup["qr_svg"] = mark_safe(setup["qr_svg"])  # noqa: S308 - segno drew it
    context = {
        "on": second_factor.is_on(user),
        "left": second_factor.codes_left(user),
        "setup": setup,
        "codes": codes,
        "proof": proof,
        "code_form": first_code,
        "failed": what if status != 200 else "",
    }
    return _account(request, "factor", context, problem=problem, status=status)
