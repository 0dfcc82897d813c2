"""Short and long jobs of the control process for organizations."""

from uuid import UUID

from celery import shared_task
from django.core.cache import cache
from redis.exceptions import RedisError

from organizations import deletion, exports, usage

DAY_S = 86_400


@shared_task(
    name="organizations.tasks.build_export", soft_time_limit=3 * 3600, time_limit=3 * 3600 + 60
)
def build_export(pk: str) -> None:
    exports.build(UUID(pk))


@shared_task(name="organizations.tasks.sweep", soft_time_limit=3000, time_limit=3060)
def sweep() -> None:
    """Hasten exports that nobody makes, let old ones go, delete what is due, look at storage."""
    for pk in exports.waiting():
        exports.hasten(pk)
    exports.expire()
    deletion.purge_due()
    if _first_today():
        usage.note_storage()


def _first_today() -> bool:
    try:
        return bool(cache.add("organizations:storage-noted", 1, DAY_S / 4))
    except RedisError:
        return False
