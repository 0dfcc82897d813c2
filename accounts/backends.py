from typing import Any

from django.contrib.auth.backends import ModelBackend

from accounts import limits
from accounts.models import User


class LimitedBackend(ModelBackend):
    """Name and password, tried only so often, wherever they come in: page, API or admin.

    Raises limits.TooManyTries.
    """

    def authenticate(
        self,
        request: Any,
        username: str | None = None,
        password: str | None = None,
        **more: Any,
    ) -> User | None:
        name = username if username is not None else more.get(User.USERNAME_FIELD)
        if request is None or name is None:
            return super().authenticate(request, username, password, **more)  # type: ignore[return-value]
        limits.check_sign_in(request, name)
        user = super().authenticate(request, username, password, **more)
        if user is None:
            limits.count_failure(request, name)
        return user  # type: ignore[return-value]
