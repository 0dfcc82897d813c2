"""What a node's password opens at the broker, tried at a real Valkey."""

import contextlib
import json
from urllib.parse import urlsplit

import pytest
import redis
from django.conf import settings
from django.core.cache import cache

from tests.factories import OrganizationFactory, WorkerFactory
from workers import broker, joining
from workers.models import Worker

pytestmark = pytest.mark.django_db


@pytest.fixture
def node():
    worker = WorkerFactory()
    user = broker.user_of(worker)
    yield worker
    broker.dismiss(user)


@pytest.fixture
def own(node):
    """The broker as the node may use it."""
    url = broker.admit(node, caller="127.0.0.1")
    with redis.Redis.from_url(url) as client:
        yield client


def platform():
    return redis.Redis.from_url(settings.REDIS_URL)


def test_a_node_hears_its_bells(own):
    with platform() as client:
        client.lpush("cpu", "a bell")
    assert own.brpop(["priority", "pycaret.cpu", "cpu"], timeout=5) == (b"cpu", b"a bell")


def test_a_node_can_do_nothing_else(own):
    cache.set("a session", "somebody's")
    with platform() as client:
        client.lpush("control", "a message")
        client.lpush("cpu", "a bell")
    forged = json.dumps({"task": "workers.tasks.sweep"})
    for name, act in {
        "forge a message to control": lambda: own.lpush("control", forged),
        "forge one to nodes": lambda: own.lpush("cpu", forged),
        "take control's messages": lambda: own.brpop(["control"], timeout=1),
        "take others' bells": lambda: own.brpop(["gpu"], timeout=1),
        "redirect a queue": lambda: own.sadd("_kombu.binding.cpu", "x"),
        "forge through what is not acknowledged": lambda: own.hset("unacked", "x", forged),
        "read the cache": lambda: own.get(next(iter(["flowml:1:a session"]))),
        "list the keys": lambda: own.keys("*"),
        "scan the keys": lambda: next(own.scan_iter()),
        "push to listeners": lambda: own.publish("flowml-live__group__job.1", "x"),
        "listen to pushes": lambda: list_of(own, "flowml-live*"),
        "make users": lambda: own.execute_command("ACL", "SETUSER", "evil", "on", "+@all"),
        "read the settings": lambda: own.config_get("*"),
        "watch everybody": lambda: own.execute_command("MONITOR"),
        "run a script": lambda: own.eval("return 1", 0),
        "empty it": lambda: own.flushall(),
    }.items():
        try:
            act()
        except redis.exceptions.NoPermissionError:
            continue
        pytest.fail(f"it can {name}")
    with platform() as client:
        assert client.lpop("control") == b"a message"
        client.delete("cpu")


def list_of(client, pattern):
    with client.pubsub() as listener:
        listener.psubscribe(pattern)
        return listener.get_message(timeout=2)


def test_the_user_comes_back_after_the_broker_lost_it_with_the_same_password(own, node):
    with platform() as client:
        client.execute_command("ACL", "DELUSER", broker.user_of(node))
    with pytest.raises(redis.RedisError):
        own.ping()
    assert broker.restore() == 1
    assert own.ping()
    assert broker.restore() == 0


def test_the_user_follows_the_nodes_queues_and_goes_with_the_node(
    own, node, django_capture_on_commit_callbacks
):
    worker = Worker.objects.get(pk=node.pk)
    with django_capture_on_commit_callbacks(execute=True):
        joining.change(worker, by=None, queues=["pycaret.cpu"])
    assert broker.restore() == 0
    with platform() as client:
        client.lpush("pycaret.cpu", "a bell")
    assert own.brpop(["pycaret.cpu"], timeout=5)
    with pytest.raises(redis.exceptions.NoPermissionError):
        own.brpop(["cpu"], timeout=1)
    with django_capture_on_commit_callbacks(execute=True):
        joining.remove(worker, by=None)
    with pytest.raises(redis.RedisError):
        own.ping()
    assert broker.restore() == 0


def test_what_the_broker_did_not_hear_of_is_put_right_by_the_sweep(
    own, node, settings, django_capture_on_commit_callbacks
):
    worker, there = Worker.objects.get(pk=node.pk), settings.REDIS_URL
    away = {"REDIS_URL": "redis://127.0.0.1:1"}  # nobody listens there
    with other(settings, **away), django_capture_on_commit_callbacks(execute=True):
        joining.change(worker, by=None, queues=["pycaret.cpu"])
    assert own.brpop(["cpu"], timeout=0.1) is None, "it still may"
    assert broker.restore() == 1
    with pytest.raises(redis.exceptions.NoPermissionError):
        own.brpop(["cpu"], timeout=1)
    with other(settings, **away), django_capture_on_commit_callbacks(execute=True):
        joining.remove(worker, by=None)
    assert own.ping()
    assert (settings.REDIS_URL, broker.restore()) == (there, 1)
    with pytest.raises(redis.RedisError):
        own.ping()


def test_the_broker_is_not_asked_while_rows_are_locked(node, monkeypatch):
    asked = []
    worker = Worker.objects.get(pk=node.pk)
    worker.broker_hash = "x"
    with monkeypatch.context() as patch:
        patch.setattr(broker, "_client", lambda: asked.append("asked"))
        joining.change(worker, by=None, concurrency=3)  # never committed in this test
        joining.remove(worker, by=None)
    assert asked == []


def test_a_node_that_joins_again_without_the_broker_loses_its_user(own, node):
    broker.leave(node)
    with pytest.raises(redis.RedisError):
        own.ping()
    assert Worker.objects.get(pk=node.pk).broker_hash == ""
    assert broker.restore() == 0


@contextlib.contextmanager
def other(settings, **values):
    before = {name: getattr(settings, name) for name in values}
    for name, value in values.items():
        setattr(settings, name, value)
    yield
    for name, value in before.items():
        setattr(settings, name, value)


def test_who_gets_no_password():
    ours = WorkerFactory(organization=OrganizationFactory())
    assert broker.admit(ours, caller="127.0.0.1") is None
    far = WorkerFactory()
    assert broker.admit(far, caller="192.0.2.7") is None, "it could not reach the broker"


def test_a_broker_that_lets_us_make_no_users(node, settings):
    with platform() as client:
        powers = ["on", ">limited", "~*", "+@all", "-acl"]
        client.execute_command("ACL", "SETUSER", "managed", "reset", *powers)
    parts = urlsplit(settings.REDIS_URL)
    host = parts.netloc.rpartition("@")[2]
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: platform().execute_command("ACL", "DELUSER", "managed"))
        settings.REDIS_URL = f"redis://managed:limited@{host}{parts.path}"
        assert broker.admit(node, caller="127.0.0.1") is None
        assert Worker.objects.get(pk=node.pk).broker_hash == ""
        settings.REDIS_URL = parts.geturl()
