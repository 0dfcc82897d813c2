"""How machines join, and what people do with those that have. Every change of a node is here."""

import hmac
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from rest_framework.exceptions import AuthenticationFailed

from accounts.errors import Conflict, FlowError, Invalid
from accounts.models import User
from organizations import audit
from organizations.models import Membership, Organization, Role
from workers import actions, bells, broker, relay, routing
from workers.models import OWN_NODES as OWN
from workers.models import JoinToken, Task, Worker
from workers.node.settings import PROTOCOL, VERSION

MOST_MINUTES = 7 * 24 * 60
MOST_USES = 100


OLDEST_PROTOCOL = 1  # of those that the server still understands; the newest is its own


class NameTaken(Conflict):
    code = "name-taken"


class UpdateFirst(FlowError):
    code = "update-first"
    status = 426


def check_protocol(protocol: int, version: str) -> None:
    """Refuse a node that the server can't talk to. Raises UpdateFirst."""
    node = f"This node runs FlowML {version or 'of an unknown version'}"
    if protocol < OLDEST_PROTOCOL:
        raise UpdateFirst(
            f"{node}, which is too old for this server ({VERSION}). Update the node, then start it "
            "again: what it had in hand runs elsewhere."
        )
    if protocol > PROTOCOL:
        raise UpdateFirst(
            f"{node}, which is newer than this server ({VERSION}) understands. Update the server "
            "first, then the nodes."
        )


# --- Join tokens ---------------------------------------------------------------------------------


@transaction.atomic
def make_join_token(
    organization: Organization | None, *, by: User | None, minutes: int = 60, uses: int = 1
) -> tuple[JoinToken, str]:
    """A token with which ``uses`` machines may join within ``minutes``. Its text is never stored.

    Without an organization the machines will be the platform's own, which work for everybody.
    """
    if not 1 <= minutes <= MOST_MINUTES:
        raise Invalid(f"A join token lasts from 1 to {MOST_MINUTES} minutes (a week).")
    if not 1 <= uses <= MOST_USES:
        raise Invalid(f"A join token is for 1 to {MOST_USES} machines.")
    JoinToken.objects.filter(expires_at__lt=timezone.now() - timedelta(days=7)).delete()
    text = secrets.token_urlsafe(24)
    made = JoinToken.objects.create(
        organization=organization,
        made_by=by,
        token_hash=Worker.hash_token(text),
        max_uses=uses,
        expires_at=timezone.now() + timedelta(minutes=minutes),
    )
    audit.record(
        "join.allowed", made, by=by, name="", changes={"machines": uses, "minutes": minutes}
    )
    return made, text


def revoke_join_token(token: JoinToken, *, by: User | None) -> None:
    """No further machine joins with it. Those that have joined stay."""
    audit.record("join.revoked", token, by=by, name="")
    token.delete()


def _use(text: str) -> Organization | None:
    """Whom a machine with this join token will work for; counts the use. None: for everybody."""
    if settings.JOIN_TOKEN and hmac.compare_digest(text.encode(), settings.JOIN_TOKEN.encode()):
        return None
    found = (
        JoinToken.objects.select_for_update(no_key=True, of=("self",))
        .select_related("organization", "made_by")
        .filter(token_hash=Worker.hash_token(text))
        .first()
    )
    if found is None or not _stands(found):
        raise AuthenticationFailed("The join token is wrong, or it was revoked.")
    if found.expires_at < timezone.now():
        raise AuthenticationFailed("The join token has run out: make another one.")
    if found.uses >= found.max_uses:
        raise AuthenticationFailed("The join token has been used up: make another one.")
    JoinToken.objects.filter(pk=found.pk).update(uses=F("uses") + 1)
    return found.organization


def may_join(text: str) -> bool:
    """Whether a machine could join with this token now. Uses nothing up."""
    if settings.JOIN_TOKEN and hmac.compare_digest(text.encode(), settings.JOIN_TOKEN.encode()):
        return True
    found = (
        JoinToken.objects.select_related("organization", "made_by")
        .filter(
            token_hash=Worker.hash_token(text),
            expires_at__gte=timezone.now(),
            uses__lt=F("max_uses"),
        )
        .first()
    )
    return found is not None and _stands(found)


def _stands(token: JoinToken) -> bool:
    """Whether its maker could still make it: machines of an organization see all of its data.

    One without a maker is from `manage.py join-token`, on the server itself.
    """
    if token.organization is None:
        return True
    if token.organization.delete_after is not None:
        return False
    maker = token.made_by
    if maker is None or (maker.is_active and maker.is_staff):
        return True
    return (
        maker.is_active
        and Membership.objects.filter(
            organization=token.organization, user=maker, role=Role.ADMIN
        ).exists()
    )


# --- Joining -------------------------------------------------------------------------------------


@transaction.atomic
def join(
    join_token: str,
    *,
    name: str,
    version: str,
    capabilities: Mapping[str, Any],
    address: str,
    concurrency: int,
    classes: Sequence[str] = (),
) -> tuple[Worker, str]:
    """A machine joins with a join token; returns the node and its own token, stored as a hash.

    Under the name of a node that is gone it takes that one's place. Raises AuthenticationFailed for
    a token that does not do, NameTaken while another machine of this name is online.
    """
    organization = _use(join_token)
    there = Worker.objects.filter(name=name, organization=organization).first()
    fixed = hmac.compare_digest(join_token.encode(), settings.JOIN_TOKEN.encode())
    # The operator's fixed token says that it is the same machine, started anew.
    if there is not None and there.is_alive and not fixed:
        raise NameTaken(f"A node with the name {name} is online already: give this one another.")
    worker, token = actions.register_worker(
        name=name,
        version=version,
        capabilities={**capabilities, "concurrency": concurrency},
        # Web opens no address on the word of a stranger's machine: it is asked over its own socket.
        address=address if organization is None else "",
        concurrency=concurrency,
        classes=classes,
        organization=organization,
    )
    if there is None:
        audit.record("node.joined", worker, organization=organization)
    return welcome(worker), token


@transaction.atomic
def join_again(
    worker: Worker,
    *,
    version: str,
    capabilities: Mapping[str, Any],
    address: str,
    concurrency: int,
    classes: Sequence[str] = (),
) -> tuple[Worker, str]:
    """A node that has joined before, and proved it by its token, gets a new one."""
    again, token = actions.register_worker(
        name=worker.name,
        version=version,
        capabilities={**capabilities, "concurrency": concurrency},
        address=address if worker.organization_id is None else "",
        concurrency=concurrency,
        classes=classes,
        organization=worker.organization,
    )
    return welcome(again), token


def welcome(worker: Worker) -> Worker:
    """Let what was set here stand, and the older process's socket be closed."""
    Worker.objects.filter(pk=worker.pk).update(restart_asked_at=None)
    worker.restart_asked_at = None
    _apply(worker)
    transaction.on_commit(lambda: relay.tell(worker.pk, {"type": "relay.check"}))
    return worker


def _apply(worker: Worker) -> None:
    """Compute the node's queues and concurrency from its own wishes and what was set here."""
    classes = worker.wanted.get("queues") or worker.classes
    has = actions.capabilities_of(worker.capabilities)
    worker.queues = routing.narrowed(routing.queues_for(has), classes)
    if worker.organization_id is not None:
        # What an organization's own nodes have written is loaded by those alone.
        worker.queues += [f"{OWN}{queue}" for queue in worker.queues]
    own_wish = worker.capabilities.get("concurrency") or worker.concurrency
    worker.concurrency = worker.wanted.get("concurrency") or own_wish
    worker.save(update_fields=["queues", "concurrency"])
    # Over the network: not while rows are locked, nor for what may yet be rolled back.
    transaction.on_commit(lambda: broker.renew(worker))


# --- What people do with a node ------------------------------------------------------------------


@transaction.atomic
def drain(worker: Worker, *, by: User | None) -> None:
    """Let the node finish what it runs and take nothing new."""
    _set_draining(worker, True, by)


@transaction.atomic
def resume(worker: Worker, *, by: User | None) -> None:
    """Let a drained node take work again."""
    _set_draining(worker, False, by)
    _ring(worker)


def _ring(worker: Worker) -> None:
    """Tell of the work that the node may do now."""
    for queue in worker.queues:
        transaction.on_commit(partial(bells.ring, queue))


def _set_draining(worker: Worker, draining: bool, by: User | None) -> None:
    if worker.draining != draining:
        Worker.objects.filter(pk=worker.pk).update(draining=draining)
        worker.draining = draining
        audit.record("node.drained" if draining else "node.resumed", worker, by=by)


@transaction.atomic
def restart(worker: Worker, *, by: User | None) -> None:
    """Have the node finish what it runs and start anew, with the code that its machine has then."""
    if not worker.is_alive:
        raise Conflict("The node is not online: start it on its machine.")
    Worker.objects.filter(pk=worker.pk).update(restart_asked_at=timezone.now())
    audit.record("node.restarted", worker, by=by)


@transaction.atomic
def change(
    worker: Worker,
    *,
    by: User | None,
    concurrency: int | None = None,
    queues: Sequence[str] | None = None,
) -> None:
    """Set how many heavy tasks the node runs at a time, and which classes of work it does.

    What is None stays; 0 and an empty list give the choice back to the node. It learns of this
    with its next heartbeat. Raises Invalid when no queue that it can serve would be left.
    """
    wanted = dict(worker.wanted)
    if concurrency is not None:
        wanted["concurrency"] = concurrency
    if queues is not None:
        has = actions.capabilities_of(worker.capabilities)
        if queues and not routing.narrowed(routing.queues_for(has), queues):
            raise Invalid(
                f"The node {worker.name} can serve none of these queues.",
                errors={"queues": [f"It can serve: {', '.join(routing.queues_for(has))}."]},
            )
        wanted["queues"] = list(queues)
    worker.wanted = {key: value for key, value in wanted.items() if value}
    worker.save(update_fields=["wanted"])
    _apply(worker)
    audit.record("node.changed", worker, by=by, changes=worker.wanted)
    _ring(worker)


@transaction.atomic
def remove(worker: Worker, *, by: User | None) -> None:
    """Forget the node: its token is void at once, and what it ran is queued again."""
    pk = worker.pk
    # The node first, as a claim does: none is granted to it while it goes.
    Worker.objects.select_for_update().filter(pk=pk).first()
    held = Task.objects.select_for_update(no_key=True, of=("self",)).filter(
        worker=worker, state=Task.State.RUNNING
    )
    for task in held:
        actions._again(task, reason=f"the node {worker.name} was removed", lost=False)
    audit.record("node.removed", worker, by=by)
    transaction.on_commit(partial(broker.dismiss, broker.user_of(worker)))
    worker.delete()
    transaction.on_commit(lambda: relay.tell(pk, {"type": "relay.check"}))
