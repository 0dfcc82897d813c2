from typing import Any, TypeVar

from django import forms
from django.contrib.auth.forms import AuthenticationForm
from unfold.forms import AuthenticationForm as UnfoldForm

from accounts.limits import TooManyTries
from accounts.models import User

F = TypeVar("F", bound=forms.BaseForm)


def styled(form: F) -> F:
    """Give the form's controls the classes of the look, and mark those with errors."""
    for name, field in form.fields.items():
        kind = "form-select" if isinstance(field.widget, forms.Select) else "form-control"
        wrong = form.is_bound and name in form.errors
        field.widget.attrs["class"] = f"{kind} is-invalid" if wrong else kind
    return form


class _Limited:
    """Tells of too many tries as of any other reason why one can't sign in."""

    def clean(self) -> Any:
        try:
            return super().clean()  # type: ignore[misc]
        except TooManyTries as problem:
            raise forms.ValidationError(problem.detail, code=problem.code) from None


class SignInForm(_Limited, AuthenticationForm):
    """Name or e-mail address, and password."""

    error_messages = {
        "invalid_login": "This name and password do not go together. Check both and try again.",
        "inactive": "This account is switched off. Ask the operator of this installation.",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].label = "Name or e-mail"

    def clean_username(self) -> str:
        """Names hold an @ only rarely: one that is somebody's address means that somebody."""
        name = str(self.cleaned_data["username"])
        if "@" in name and not User.objects.filter(username=name).exists():
            found = User.objects.filter(email__iexact=name).values_list("username", flat=True)
            return found.first() or name
        return name


class AdminSignInForm(_Limited, UnfoldForm):
    """Of the operator console: for staff alone."""
