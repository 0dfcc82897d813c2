"""``manage.py demo``: the whole way once, through the public API, as anybody with curl could."""

import shutil
import signal
import time
from typing import Any

import httpx
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.models import User
from flowml_site import embedded
from flowml_site.embedded import ServiceError
from flowml_site.platform import Platform
from organizations.actions import awaits_operator, register, set_up

USERNAME = "demo"
SAMPLE, TARGET = "penguins", "species"


class Command(BaseCommand):
    help = (
        "Start the platform (or use the one that runs), make a demo user, train on the Palmer "
        "penguins through the public API, show the leaderboard and a prediction, and stay up."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--exit", action="store_true", help="stop instead of staying up")
        parser.add_argument("--budget", type=float, default=45, help="seconds to train for")

    def handle(self, *args: Any, **options: Any) -> None:
        platform = Platform(settings.FLOWML_VAR, port=settings.PORT)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.default_int_handler)
        try:
            if platform.is_running():
                self.stdout.write(f"Using the platform that runs at {platform.url}.")
            else:
                platform.start(say=self._say)
            self._tour(platform.url, options["budget"])
            if not options["exit"]:
                self._stay(platform)
        except ServiceError as error:
            raise CommandError(str(error)) from error
        except httpx.HTTPError as error:
            raise CommandError(f"The platform stopped answering: {error}.") from error
        except KeyboardInterrupt:
            self.stdout.write("\nStopping.")
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is stopping already
            platform.stop(say=self._say)

    def _say(self, line: str) -> None:
        self.stdout.write(f"  {line}")
        self.stdout.flush()

    def _tour(self, url: str, budget_s: float) -> None:
        password = _demo_user()
        with Api(base_url=url, timeout=60) as api:
            api.sign_in(USERNAME, password)
            self.stdout.write(f"\nLoading the sample data set {SAMPLE}.")
            dataset = api.ok("POST", f"/api/datasets/samples/{SAMPLE}")
            dataset = self._ingested(api, dataset["id"])
            latest = dataset["latest"]
            self.stdout.write(
                f"{dataset['name']}: {latest['rows']} rows, {latest['column_count']} columns."
            )
            self.stdout.write(f"Training to predict {TARGET} for up to {budget_s:.0f} s.\n")
            wish = {"dataset": dataset["id"], "target": TARGET, "time_budget": budget_s}
            job = api.ok("POST", "/api/training/start", json=wish)
            job = self._trained(api, job["id"])
            board = api.ok("GET", f"/api/results/job/{job['id']}/leaderboard")["results"]
            self.stdout.write("\n" + leaderboard(board, job["metric"]) + "\n")
            if job["state"] != "succeeded" or not job["best_model"]:
                raise CommandError(f"The training {job['state']}: {job['error'] or 'no model'}")
            best = api.ok("GET", f"/api/results/model/{job['best_model']['id']}")
            self._predict(api, dataset["id"], best)
            self.stdout.write(
                f"\nOpen     {url}/training/{job['id']}\n"
                f"Sign in  as {USERNAME} with the password {password}\n"
                f"The API  {url}/api/docs\n"
                f"Work and nodes, for the operator  {url}/admin/\n"
            )

    def _ingested(self, api: "Api", dataset: str) -> Any:
        deadline = time.monotonic() + 120
        while True:
            body = api.ok("GET", f"/api/datasets/{dataset}")
            if body["state"] == "ready":
                return body
            if body["state"] == "failed":
                raise CommandError(f"The data set could not be read: {body['newest']['error']}")
            if time.monotonic() > deadline:
                raise CommandError("The data set was not read within 120 s: see var/logs/node.log.")
            time.sleep(0.3)

    def _trained(self, api: "Api", job: str) -> Any:
        """Watch the job to its end, with a bar that is drawn over where there is a terminal."""
        shown, is_terminal = "", self.stdout.isatty()
        while True:
            seen = api.ok("GET", f"/api/training/{job}/progress")
            line = progress_line(seen)
            if is_terminal:
                self.stdout.write(f"\r\x1b[K{line}", ending="")
            elif line != shown:
                self.stdout.write(line)
            self.stdout.flush()
            shown = line
            if seen["state"] in {"succeeded", "failed", "cancelled"}:
                if is_terminal:
                    self.stdout.write("")
                return api.ok("GET", f"/api/training/{job}")
            time.sleep(0.5 if is_terminal else 2)

    def _predict(self, api: "Api", dataset: str, model: Any) -> None:
        preview = api.ok("GET", f"/api/datasets/{dataset}/preview?rows=1&offset=200")
        known = preview["rows"][0]
        row = {column["name"]: known[column["name"]] for column in model["schema"]}
        answer = api.ok("POST", f"/api/results/model/{model['id']}/predict", json={"rows": [row]})
        self.stdout.write("One prediction, of row 201 of the data set:")
        self.stdout.write("  " + ", ".join(f"{name} {value}" for name, value in row.items()))
        chances = (answer["probabilities"] or [{}])[0]
        by_chance = sorted(chances.items(), key=lambda pair: -pair[1])
        self.stdout.write(
            f"  {TARGET}: {answer['predictions'][0]}"
            + "".join(f", {label} {share:.1%}" for label, share in by_chance)
            + f" (it is {known[TARGET]})"
        )

    def _stay(self, platform: Platform) -> None:
        self.stdout.write("Ctrl-C stops it; `make up` starts it again with the same data.")
        while platform.is_running():
            platform.pass_on(self._say)
            time.sleep(0.5)
        raise CommandError("The platform has ended: see var/logs/up.log.")


class Api(httpx.Client):
    """The public API, as somebody with an access token."""

    def sign_in(self, username: str, password: str) -> None:
        answer = self.post("/api/auth/login", data={"username": username, "password": password})
        if answer.status_code == 401:
            raise CommandError(
                f"The user {username} has a password that the demo does not know: sign in at "
                f"{self.base_url} with it."
            )
        self.headers["Authorization"] = f"Bearer {_body(answer)['access']}"

    def ok(self, method: str, path: str, **kwargs: Any) -> Any:
        """The JSON of an answer that is not an error."""
        return _body(self.request(method, path, **kwargs))


def _body(answer: httpx.Response) -> Any:
    if answer.is_error:
        try:
            detail = answer.json()["detail"]
        except (ValueError, LookupError, TypeError):
            detail = answer.text[:200]
        raise CommandError(f"{answer.request.url.path} answered {answer.status_code}: {detail}")
    return answer.json()


def _demo_user() -> str:
    """Make the demo user unless there is one; on a new installation it is the operator.

    Returns the password that it was made with.
    """
    password = str(embedded.make_secrets(settings.FLOWML_VAR)["DEMO_PASSWORD"])
    if not User.objects.filter(username=USERNAME).exists():
        who = {"username": USERNAME, "email": "demo@example.org", "password": password}
        if awaits_operator():
            set_up(**who)
        else:
            register(**who, allowed=True, verified=True)
    return password


def progress_line(seen: Any) -> str:
    """One line: a bar, seconds, how many models there are and the best of them."""
    width = 24
    full = round(width * float(seen["fraction"]))
    best = seen["best_model"]
    models = f"{seen['model_count']} models"
    if best:
        models += f", best {best['name']} {best['score']:.4f}"
    what = seen["waiting_for"] or seen["message"] or seen["state"]
    line = f"[{'#' * full}{'.' * (width - full)}] {seen['elapsed_s']:4.0f} s  {models}  {what}"
    return line[: shutil.get_terminal_size((100, 24)).columns - 1]


def leaderboard(rows: list[Any], metric: str) -> str:
    """A table for a terminal, best first."""
    head = ("", "model", metric, "fit s", "ms a row")
    lines = [head]
    for row in rows:
        score = "-" if row["score"] is None else f"{row['score']:.4f}"
        fit, each = row["fit_s"], row["predict_ms_row"]
        lines.append(
            (
                str(row["rank"] or ""),
                row["name"],
                score,
                "" if fit is None else f"{fit:.2f}",
                "" if each is None else f"{each:.2f}",
            )
        )
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    return "\n".join(
        f"{a:>{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e:>{widths[4]}}"
        for a, b, c, d, e in lines
    )
