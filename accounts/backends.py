from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.hashers import get_hasher, identify_hasher, make_password
from django.db.models import Q
from django.db.models.functions import Lower

from accounts import limits
from accounts.models import User


class LimitedBackend(ModelBackend):
    """Name or e-mail address, and password, tried only so often: page, API or console.

    Raises limits.TooManyTries. A wrong password costs as much time as an unknown name.
    """

    def authenticate(
        self,
        request: Any,
        username: str | None = None,
        password: str | None = None,
        **more: Any,
    ) -> User | None:
        name = username if username is not None else more.get(User.USERNAME_FIELD)
        if name is None or password is None:
            return None
        user = find(name)
        # By name and by address somebody has as many tries as by either.
        tries = limits.sign_in_tries(request, user.username if user else name)
        tries.count()
        if right(user, password) and user is not None and self.user_can_authenticate(user):
            tries.forgive()
            return user
        return None


def find(name: str) -> User | None:
    """Who has this name, or else this e-mail address, in capitals or not."""
    low = name.lower()
    found = User.objects.alias(low_name=Lower("username"), low_email=Lower("email")).filter(
        Q(low_name=low) | Q(low_email=low)
    )
    return min(
        found, key=lambda user: (user.username != name, user.username.lower() != low), default=None
    )


def right(user: User | None, password: str) -> bool:
    """Whether this is the person's password; False takes the same hashing whoever it is."""
    if user is not None and user.check_password(password):
        return True
    preferred = get_hasher().algorithm
    hashed = preferred
    if user is None:
        make_password(password)
    elif user.has_usable_password():
        try:
            hashed = identify_hasher(user.password).algorithm
        except ValueError:  # then Django has hashed once as well
            hashed = preferred
    # Whose hash is still an imported one would be told by the time that bcrypt takes.
    imported = r"^(bcrypt|\$2)"
    if User.objects.filter(password__regex=imported).exists():
        if hashed == preferred:
            bcrypt = get_hasher("bcrypt")
            bcrypt.encode(password, bcrypt.salt())
        else:
            make_password(password)
    return False
