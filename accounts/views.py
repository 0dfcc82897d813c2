"""Signing in and out."""

from typing import Any

from django.conf import settings
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView, LogoutView
from django.core.exceptions import NON_FIELD_ERRORS
from django.http import HttpResponse
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_http_methods

from accounts.forms import SignInForm, styled
from accounts.limits import TooManyTries


@method_decorator(require_http_methods(["GET", "POST"]), name="dispatch")
class SignIn(LoginView):
    """Sign in and go where the person wanted to go (``next``, on this host alone)."""

    template_name = "accounts/sign_in.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True

    def form_invalid(self, form: AuthenticationForm) -> HttpResponse:
        response = super().form_invalid(form)
        if form.has_error(NON_FIELD_ERRORS, TooManyTries.code):
            response.status_code = TooManyTries.status
        return response

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(**kwargs)
        styled(context["form"])
        context["allow_signup"] = settings.ALLOW_SIGNUP
        return context


class SignOut(LogoutView):
    """Sign out by POST; a GET would let any page's picture tag do it."""

    http_method_names = ["post", "options"]
