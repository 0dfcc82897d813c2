"""Web hooks: what goes out, to whom, and when it is tried again."""

import hashlib
import hmac
import json
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from django.utils import timezone

from accounts.errors import Invalid
from organizations.models import Membership, Role
from pipelines import actions, connecting, reach, tasks
from pipelines.connectors.webhook import TRIES, WebHook
from pipelines.models import Connection, Run
from tests.pipelines import make as piping
from tests.training import make
from training import telling
from training.models import TrainingJob
from workers.models import Task
from workers.node.channel import WorkError

KEY = "key-1234567890"


class Listener:
    """Somebody's server, which answers with ``answers`` in turn, and the last of them for ever."""

    def __init__(self) -> None:
        self.answers, self.heard = [200], []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                listener.heard.append((self.path, dict(self.headers), body))
                status = listener.answers.pop(0) if listener.answers[1:] else listener.answers[0]
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.settings = {"host": "localhost", "port": self.port, "path": "/in?x=1", "tls": "no"}


@pytest.fixture
def far():
    found = Listener()
    threading.Thread(target=found.server.serve_forever, daemon=True).start()
    yield found
    found.server.shutdown()
    found.server.server_close()


def hook(far: Listener, pauses: list[float] | None = None, **change) -> WebHook:
    rules = reach.parse(f"localhost:{far.port}")
    pause = (pauses if pauses is not None else []).append
    return WebHook({**far.settings, **change}, {"key": KEY}, rules, pause=pause)


def test_a_message_is_signed_so_that_its_receiver_can_tell(far):
    assert hook(far).send("pipeline-run.failed", {"run": {"number": 7}}, "delivery-1") == 1
    [(path, headers, body)] = far.heard
    assert path == "/in?x=1"
    assert json.loads(body) == {"run": {"number": 7}}
    signed = headers["X-FlowML-Timestamp"].encode() + b"." + body
    wanted = hmac.new(KEY.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["X-FlowML-Signature"] == f"sha256={wanted}"
    assert headers["X-FlowML-Event"] == "pipeline-run.failed"
    assert KEY not in str(far.heard)
    assert "took a message" in hook(far).check()


def test_it_is_tried_again_while_the_far_side_fails_and_not_when_it_refuses(far):
    pauses: list[float] = []
    far.answers = [503, 429, 204]
    assert hook(far, pauses).send("ping", {}, "delivery-1") == 3
    assert pauses == [5, 10]
    assert {headers["X-FlowML-Delivery"] for _, headers, _ in far.heard} == {"delivery-1"}
    for status, tries in ((404, 1), (302, 1), (500, TRIES)):
        far.heard.clear()
        far.answers = [status]
        with pytest.raises(WorkError, match=f"answered {status}"):
            hook(far).send("ping", {}, "delivery-2")
        assert [path for path, *_ in far.heard] == ["/in?x=1"] * tries, "nobody is sent elsewhere"


def test_it_goes_only_where_the_operator_allows(far):
    for change, rules, said in (
        ({}, "", "FLOWML_REACH"),
        ({"host": "169.254.169.254"}, f"169.254.169.254:{far.port}", "never reach"),
        ({"path": "no slash"}, f"localhost:{far.port}", 'begins with "/"'),
        ({"port": 1}, "localhost:1", "was not reached"),
        ({"tls": "yes"}, f"localhost:{far.port}", "was not reached"),  # no plain words instead
    ):
        found = WebHook(
            {**far.settings, **change}, {"key": KEY}, reach.parse(rules), pause=lambda _: None
        )
        with pytest.raises(WorkError) as refused:
            found.send("ping", {}, "delivery-1")
        assert said in refused.value.sentence
    with pytest.raises(WorkError, match="no signing key"):
        WebHook(far.settings, {}, reach.parse(f"localhost:{far.port}")).check()
    assert far.heard == []


# --- Who is told ---


@pytest.fixture
def by(db) -> Membership:
    return make.member(Role.ADMIN)


def kept(by: Membership, name: str = "chat", **settings) -> Connection:
    given = {"host": "hooks.example.org", "port": 443, **settings}
    return piping.connection(by, name, kind="webhook", settings=given, secrets={"key": KEY})


def test_the_hooks_of_a_pipeline_hear_of_its_ends(by):
    kept(by)
    notify = {"hooks": ["chat"], "on": ["failed"]}
    definition = {"stages": piping.TRAINS, "notify": {"hooks": ["chat", "house"]}}
    with pytest.raises(Invalid) as refused:
        actions.make(by, name="nightly", definition=definition)
    assert "no web hook house" in str(refused.value.errors["notify.hooks"])
    with pytest.raises(Invalid, match="Say who is told"):
        actions.make(
            by, name="x", definition={"stages": piping.TRAINS, "notify": {"on": ["failed"]}}
        )
    definition = {"stages": piping.TRAINS, "notify": notify}
    home = actions.make(by, name="nightly", definition=definition)
    with pytest.raises(connecting.InUse, match="nightly"):
        connecting.delete(by, Connection.objects.get(name="chat"))
    run = actions.start_run(by, home)  # there are no data: it fails at once
    tasks.sweep()
    tasks.sweep()
    run.refresh_from_db()
    assert run.state == Run.State.FAILED
    told = Task.objects.get(kind="pipeline.hook")
    assert told.payload["event"] == "pipeline-run.failed"
    body = told.payload["body"]
    assert body["organization"] == str(by.organization_id)
    assert (body["run"]["number"], body["pipeline"]["name"]) == (1, "nightly")
    assert "no data set 'flowers'" in body["run"]["error"]
    assert body["url"].endswith(run.get_absolute_url())
    assert KEY not in json.dumps(told.payload), "a node is told in confidence"


def test_hooks_hear_of_long_trainings_of_their_own_organization(by):
    short, none = kept(by, training_min=10), kept(by, "other")
    kept(make.member(Role.ADMIN), "elsewhere", training_min=0)
    job = make.job(by)
    now = timezone.now()
    for minutes, tasks_then in ((9, 0), (11, 1)):
        TrainingJob.objects.filter(pk=job.pk).update(
            state="failed", error="No.", started_at=now - timedelta(minutes=minutes),
            finished_at=now, created_by=None,
        )  # fmt: skip
        telling.tell(job.pk)
        assert Task.objects.filter(kind="pipeline.hook").count() == tasks_then
    told = Task.objects.get(kind="pipeline.hook")
    assert told.subject == short.pk != none.pk
    assert told.payload["event"] == "training.failed"
    assert told.payload["body"]["training"]["seconds"] == 660
