from typing import Any

from django import forms
from django.contrib.auth.password_validation import validate_password
from django.contrib.auth.validators import UnicodeUsernameValidator

from accounts.models import User


class RegisterForm(forms.Form):
    """What a sign-up asks for; the API and the page check by the same rules."""

    username = forms.CharField(max_length=150, validators=[UnicodeUsernameValidator()])
    email = forms.EmailField()
    password = forms.CharField(max_length=256, strip=False, widget=forms.PasswordInput)

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        name, email = data.get("username", ""), data.get("email", "")
        if "@" in name and name.lower() != email.lower():
            # People sign in by address too: nobody takes somebody else's for a name.
            self.add_error("username", "A name with an @ in it must be your own address.")
        if "password" in data:
            someone = User(username=name, email=email)
            try:
                validate_password(data["password"], someone)
            except forms.ValidationError as problem:
                self.add_error("password", problem)
        return data
