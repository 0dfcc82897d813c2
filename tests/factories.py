"""Objects for tests. Each is what the actions would have made, in the shortest way."""

from typing import Any
from uuid import uuid4

import factory
from django.contrib.auth.hashers import make_password
from factory.django import DjangoModelFactory

from accounts import jwt
from accounts.models import User
from organizations.models import Membership, Organization, Role
from workers import actions
from workers.models import Task, Worker

PASSWORD = "correct horse battery"


class UserFactory(DjangoModelFactory[User]):
    class Meta:
        model = User

    username = factory.Sequence(lambda n: f"user{n}")
    email = factory.LazyAttribute(lambda user: f"{user.username}@example.org")
    password = factory.LazyFunction(lambda: make_password(PASSWORD))


def bearer(user: User) -> dict[str, str]:
    """The header that a program sends after it has signed in as ``user``."""
    return {"Authorization": f"Bearer {jwt.issue(user)['access']}"}


class OrganizationFactory(DjangoModelFactory[Organization]):
    class Meta:
        model = Organization

    name = factory.Sequence(lambda n: f"Organization {n}")


class MembershipFactory(DjangoModelFactory[Membership]):
    class Meta:
        model = Membership

    user = factory.SubFactory(UserFactory)
    organization = factory.SubFactory(OrganizationFactory)
    role = Role.ADMIN


class WorkerFactory(DjangoModelFactory[Worker]):
    class Meta:
        model = Worker

    name = factory.Sequence(lambda n: f"node{n}")
    token_hash = factory.Sequence(lambda n: Worker.hash_token(f"token{n}"))
    capabilities = {"cpu": 4, "ram_mib": 8192, "engines": ["pycaret"], "gpus": []}
    queues = ["priority", "pycaret.cpu", "cpu"]


def make_task(organization: Organization | None = None, **fields: Any) -> Task:
    """A waiting task of ``organization`` (a new one by default)."""
    subject = fields.pop("subject", None) or uuid4()
    return actions.add_task(
        organization or OrganizationFactory(),
        kind=fields.pop("kind", "training.train"),
        subject=subject,
        topic=fields.pop("topic", f"job:{subject}"),
        payload=fields.pop("payload", {}),
        engine=fields.pop("engine", "pycaret"),
        **fields,
    )
