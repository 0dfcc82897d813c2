"""Pages of organizations. The guard of every page is ``org_role``."""

from urllib.parse import urlencode
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST

from accounts import limits
from accounts.errors import FlowError
from accounts.forms import styled
from accounts.models import User
from organizations import actions, invites
from organizations.access import SESSION_KEY
from organizations.forms import RegisterForm
from organizations.models import Invite, Membership


@require_http_methods(["GET", "POST"])
@sensitive_post_parameters("password")
def sign_up(request: HttpRequest) -> HttpResponse:
    """Make an account and its own organization, and sign in. The very first is the operator's."""
    wanted = request.POST.get("next") or request.GET.get("next") or ""
    if not url_has_allowed_host_and_scheme(
        wanted, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    ):
        wanted = ""
    if request.user.is_authenticated:
        return redirect(wanted or settings.LOGIN_REDIRECT_URL)
    first = actions.awaits_operator()
    form = RegisterForm(request.POST if request.method == "POST" else None)
    form.fields["username"].label = "Name"
    form.fields["email"].label = "E-mail"
    form.fields["password"].help_text = "At least eight characters that are hard to guess."
    if request.method == "POST" and form.is_valid():
        try:
            if first:
                user = actions.set_up(**form.cleaned_data)
            else:
                limits.count_sign_up(request)
                user = actions.register(**form.cleaned_data, allowed=settings.ALLOW_SIGNUP)
        except FlowError as problem:
            for field, texts in problem.errors.items():
                form.add_error(field, list(texts))
            if not problem.errors:
                form.add_error(None, problem.detail)
        else:
            if user.awaits_verification:
                messages.info(request, f"Open the link that went to {user.email}, then sign in.")
                return redirect("accounts:sign-in")
            login(request, user)
            return redirect(wanted or settings.LOGIN_REDIRECT_URL)
    context = {"form": styled(form), "next": wanted, "open": settings.ALLOW_SIGNUP, "first": first}
    return render(
        request,
        "organizations/sign_up.html",
        context,
        status=422 if form.errors else 200,
    )


def join_link(invite: Invite) -> str:
    """The address to send to those who shall join. The code is in the query, which no log keeps."""
    return (
        f"{settings.PUBLIC_URL}{reverse('organizations:join')}?{urlencode({'code': invite.code})}"
    )


@require_http_methods(["GET", "POST"])
def join(request: HttpRequest) -> HttpResponse:
    """Join an organization by a code: typed in, or out of an invite link.

    Who isn't signed in sees who invites, and comes back here afterwards.
    """
    code = (request.POST if request.method == "POST" else request.GET).get("code", "")[:64].strip()
    user = request.user if isinstance(request.user, User) else None
    context: dict[str, object] = {"code": code, "open": settings.ALLOW_SIGNUP}
    status = 200
    try:
        if request.method == "POST":
            if user is None:
                return redirect_to_login(f"{request.path}?{urlencode({'code': code})}")
            membership = invites.accept(user, code)
            request.session[SESSION_KEY] = str(membership.organization_id)
            word = "You have joined" if membership.joined else "You are already a member of"
            messages.success(request, f"{word} {membership.organization}.")
            return redirect("home")
        if code:
            invite = invites.look(code, user)
            context["invite"] = invite
            context["member"] = (
                user is not None and invite.organization.memberships.filter(user=user).exists()
            )
    except FlowError as problem:
        context["problem"] = problem.detail
        status = problem.status
    here = f"{request.path}?{urlencode({'code': code})}" if code else request.path
    return render(request, "organizations/join.html", context | {"here": here}, status=status)


@require_POST
@login_required
def choose(request: HttpRequest, organization_id: UUID) -> HttpResponse:
    """Act for another of one's organizations from now on in this session."""
    membership = get_object_or_404(
        Membership.objects.select_related("organization"),
        user=request.user,
        organization=organization_id,
    )
    request.session[SESSION_KEY] = str(organization_id)
    messages.success(request, f"You now work in {membership.organization}.")
    return redirect("home")
