from typing import Any, TypeVar

from django import forms
from django.contrib.auth.forms import AuthenticationForm
from django.utils.translation import gettext_lazy as _

from accounts.limits import TooManyTries
from accounts.models import Scope, User

F = TypeVar("F", bound=forms.BaseForm)


def styled(form: F) -> F:
    """Give the form's controls the classes of the look, and mark those with errors."""
    for name, field in form.fields.items():
        kind = "form-select" if isinstance(field.widget, forms.Select) else "form-control"
        wrong = form.is_bound and name in form.errors
        field.widget.attrs["class"] = f"{kind} is-invalid" if wrong else kind
    return form


def password_field(label: str, *, new: bool = False, hint: str = "") -> forms.CharField:
    kind = "new-password" if new else "current-password"
    widget = forms.PasswordInput(attrs={"autocomplete": kind})
    return forms.CharField(max_length=256, strip=False, label=label, widget=widget, help_text=hint)


NEW_HINT = "At least eight characters that are hard to guess."


class SignInForm(AuthenticationForm):
    """Name or e-mail address, and password."""

    error_messages = {
        "invalid_login": _("This name and password do not go together. Check both and try again."),
        "inactive": _("This account is switched off. Ask the operator of this installation."),
    }
    too_many: TooManyTries | None = None
    unverified: User | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].label = _("Name or e-mail")
        self.fields["password"].label = _("Password")

    def clean(self) -> Any:
        """Tell of too many tries as of any other reason why one can't sign in."""
        try:
            return super().clean()
        except TooManyTries as problem:
            self.too_many = problem
            raise forms.ValidationError(problem.detail, code=problem.code) from None

    def confirm_login_allowed(self, user: Any) -> None:
        super().confirm_login_allowed(user)
        if user.awaits_verification:
            self.unverified = user
            raise forms.ValidationError(
                "Open the link that was sent to your e-mail address first.", code="unverified"
            )


class CodeForm(forms.Form):
    """A code of the authenticator, or a recovery code."""

    code = forms.CharField(
        max_length=40,
        widget=forms.TextInput(
            attrs={"autocomplete": "one-time-code", "autofocus": True, "spellcheck": "false"}
        ),
    )


class AddressForm(forms.Form):
    email = forms.EmailField(
        label="E-mail", widget=forms.EmailInput(attrs={"autocomplete": "email"})
    )


class ProofForm(forms.Form):
    password = password_field("Your password")


class ResetForm(forms.Form):
    password = password_field("New password", new=True, hint=NEW_HINT)


class PasswordForm(forms.Form):
    current_password = password_field("Your password now")
    new_password = password_field("New password", new=True, hint=NEW_HINT)


class ProfileForm(forms.Form):
    first_name = forms.CharField(max_length=150, required=False, label="First name")
    last_name = forms.CharField(max_length=150, required=False, label="Last name")


class MailForm(forms.Form):
    MINUTES = (
        ("0", "Always"),
        ("10", "When it took 10 minutes or more"),
        ("60", "When it took an hour or more"),
        ("", "Never"),
    )

    mail_after_min = forms.TypedChoiceField(
        choices=MINUTES,
        coerce=int,
        empty_value=None,
        required=False,
        label="When a training of yours ends",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        now = str(self.initial["mail_after_min"])
        if now not in dict(self.MINUTES):  # by the API it may be any number
            field = self.fields["mail_after_min"]
            assert isinstance(field, forms.TypedChoiceField)
            field.choices = [(now, f"When it took {now} minutes or more"), *self.MINUTES]


class EmailForm(forms.Form):
    email = forms.EmailField(label="E-mail")
    password = password_field("Your password")


class TokenForm(forms.Form):
    DAYS = ((7, "a week"), (30, "30 days"), (90, "90 days"), (365, "a year"))

    name = forms.CharField(max_length=80, help_text="What will use it: “nightly upload”.")
    scope = forms.ChoiceField(
        choices=(
            (Scope.READ, "Read: look at everything you can see"),
            (Scope.WRITE, "Write: also upload, train, predict and deploy"),
            (Scope.ADMIN, "Admin: everything you may do, your account included"),
        ),
    )
    days = forms.TypedChoiceField(choices=DAYS, coerce=int, initial=90, label="Good for")
