from typing import Any, TypeVar

from django import forms
from django.contrib.auth.forms import AuthenticationForm

from accounts.models import User

F = TypeVar("F", bound=forms.BaseForm)


def styled(form: F) -> F:
    """Give the form's controls the classes of the look, and mark those with errors."""
    for name, field in form.fields.items():
        kind = "form-select" if isinstance(field.widget, forms.Select) else "form-control"
        wrong = form.is_bound and name in form.errors
        field.widget.attrs["class"] = f"{kind} is-invalid" if wrong else kind
    return form


class SignInForm(AuthenticationForm):
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
