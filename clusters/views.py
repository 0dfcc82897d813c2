"""The pages of clusters and deployments."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.dateformat import format as date_format
from django.utils.text import slugify
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.errors import FlowError
from clusters import actions, drift, history, outcomes, queue, totals, watch, words
from clusters.api import serializers as said
from clusters.api.views import DAYS, HOURS
from clusters.models import Cluster, ClusterNode, Deployment, Priority
from clusters.scheduling import Resources
from clusters.world import total_of
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from training.models import TrainedModel, TrainingJob
from training.views.common import PER_PAGE, last_seq
from training.views.models import typical_row
from workers.fleet import is_operator
from workers.models import Event

EVENTS = 30
ENDED = 5
LINES = 200
MODELS = 50
BESIDE = 10  # models of the same training
# A training that is "stopped" ended early; a deployment just doesn't run.
SHOWN_STATE = {"stopped": "halted"}
DOES = {
    "stop": (actions.stop, "stops."),
    "start": (actions.start, "starts as soon as there is room."),
    "delete": (actions.delete, "is deleted."),
    "rollback": (actions.roll_back, "goes back to the revision before."),
    "promote": (actions.promote, "gives all requests to what was its canary."),
    "abandon": (actions.abandon, "has no canary any more."),
    "retrain": (actions.retrain, "is being trained again, on the newest data."),
    "forget": (actions.keep_no_samples, "keeps no samples any more."),
    "unfollow": (actions.follow_nothing, "stays with the model that it runs."),
}


# --- Clusters ---


def _gauges(total: Resources, taken: Resources) -> list[dict[str, Any]]:
    """What is taken of each resource that there is."""
    scales: list[tuple[Callable[[float], str], str]] = [
        (words.gb, "Memory"), (_cores, "CPU"), (str, "GPUs"),
    ]  # fmt: skip
    return [
        {
            "title": title,
            "taken": shown(part),
            "total": shown(whole),
            "free": shown(max(0, whole - part)),
            "share": min(1.0, part / whole),
        }
        for (shown, title), whole, part in zip(scales, total, taken, strict=True)
        if whole
    ]


def _cores(millis: float) -> str:
    return f"{millis / 1000:g} core{'' if millis == 1000 else 's'}"


@require_GET
@org_role(Role.VIEWER)
def clusters(request: OrgRequest) -> HttpResponse:
    found = totals.counted(Cluster.objects.of(request.membership.organization)).order_by("name")
    page = Paginator(found, PER_PAGE).get_page(request.GET.get("page"))
    rows: list[Any] = list(page)
    totals.add_totals(rows)
    for row in rows:
        row.size = words.amounts(row.total)
    page.object_list = rows  # type: ignore[assignment]
    may = request.membership.may(Role.ADMIN)
    return render(
        request, "clusters/clusters.html", {"section": "clusters", "page": page, "may_change": may}
    )


@require_http_methods(["GET", "POST"])
@org_role(Role.ADMIN)
def new_cluster(request: OrgRequest) -> HttpResponse:
    operator = is_operator(request.user)
    nodes = _free_nodes(request, operator)
    values: dict[str, Any] = {"name": "", "nodes": [str(node.pk) for node in nodes]}
    errors: dict[str, Any] = {}
    if request.method == "POST":
        values = {
            **{key: request.POST.get(key, "") for key in (
                "name", "total_ram_gb", "total_cpu_cores", "total_gpu_count"
            )},
            "nodes": request.POST.getlist("nodes"),
        }  # fmt: skip
        sent = {key: value for key, value in values.items() if value and key != "nodes"}
        form = said.NewCluster(data={"name": "", **sent, "node_ids": values["nodes"]})
        if form.is_valid():
            try:
                made = actions.make_cluster(
                    request.membership,
                    name=form.validated_data["name"],
                    limit=form.limit,
                    nodes=form.validated_data["node_ids"],
                    operator=operator,
                )
                return redirect(made)
            except FlowError as refusal:
                if refusal.status == 404:
                    raise Http404(refusal.detail) from refusal
                errors = refusal.errors or {"": [refusal.detail]}
        else:
            errors = {key: [str(one) for one in ones] for key, ones in form.errors.items()}
    context = {"section": "clusters", "nodes": nodes, "values": values, "errors": errors}
    context["other_errors"] = _elsewhere(errors, {"name"})
    status = 400 if errors else 200
    return render(request, "clusters/new_cluster.html", context, status=status)


def _free_nodes(request: OrgRequest, operator: bool) -> list[Any]:
    """Nodes that could be put in, and are in no cluster."""
    found = actions.placeable(request.membership, operator=operator)
    taken = set(ClusterNode.objects.filter(worker__in=found).values_list("worker_id", flat=True))
    nodes = [node for node in found.order_by("name") if node.pk not in taken]
    for node in nodes:
        node.size = words.amounts(total_of(node.capabilities))
    return nodes


def _elsewhere(errors: dict[str, Any], known: set[str]) -> list[tuple[str, list[str]]]:
    return [
        (key.replace("_", " ").capitalize() or "That can't be done", messages)
        for key, messages in errors.items()
        if key not in known
    ]


def _cluster(request: OrgRequest, cluster: UUID) -> Any:
    mine = totals.counted(Cluster.objects.of(request.membership.organization))
    return get_object_or_404(mine, pk=cluster)


@require_GET
@org_role(Role.VIEWER)
def cluster(request: OrgRequest, cluster: UUID) -> HttpResponse:
    home = _cluster(request, cluster)
    totals.add_details(home)
    may = request.membership.may(Role.ADMIN)
    rows = [{**row, "gauges": _gauges(row["total"], row["allocated"])} for row in home.rows]
    taken = Resources(*(a - b for a, b in zip(home.total, home.free, strict=True)))
    deployments = Deployment.objects.there().filter(cluster=home).select_related("revision")
    context = {
        "section": "clusters",
        "cluster": home,
        "limit": words.amounts([one or 0 for one in home.limit]) if home.limit else "",
        "gauges": _gauges(home.total, taken),
        "nodes": rows,
        "deployments": [_row(one) for one in deployments.order_by("-priority", "created_at")[:100]],
        "may_change": may,
        "more_nodes": _free_nodes(request, is_operator(request.user)) if may else [],
    }
    return render(request, "clusters/cluster.html", context)


@require_GET
@org_role(Role.VIEWER)
def cluster_history(request: OrgRequest, cluster: UUID) -> HttpResponse:
    """What it had, what was allocated and what was free, over time."""
    home = _cluster(request, cluster)
    text = request.GET.get("hours", "")
    hours = int(text) if text.isdecimal() and len(text) < 4 and int(text) in history.HOURS else 24
    steps = history.steps(home, hours)
    labels = [date_format(step.at, "H:i" if hours == 24 else "D H:i") for step in steps]
    charts = []
    for number, (key, title, unit, scale) in enumerate(
        (("ram", "Memory", "GB", 1024), ("cpu", "CPU", "cores", 1000), ("gpu", "GPUs", "GPUs", 1))
    ):
        if not any(step.total and step.total[number] for step in steps):
            continue
        series = {
            name: [None if some is None else round(some[number] / scale, 2) for some in those]
            for name, those in (
                ("Total", [step.total for step in steps]),
                ("Allocated", [step.allocated for step in steps]),
                ("Free", [step.free for step in steps]),
            )
        }
        step = f"{history.HOURS[hours]} min"
        about = f"In steps of {step}: the most that was allocated, the least that was free."
        charts.append(_lines(f"history-{key}", title, about, labels, unit, series))
    rows = [
        {
            "at": step.at,
            "nodes": f"{step.online} of {step.nodes}",
            "total": words.amounts(step.total),
            "allocated": words.amounts(step.allocated),
            "free": words.amounts(step.free),
        }
        for step in reversed(steps)
        if step.total is not None and step.allocated is not None and step.free is not None
    ]
    context = {
        "cluster": home,
        "hours": hours,
        "choices": [(24, "Last day"), (168, "Last week")],
        "charts": charts,
        "rows": rows,
    }
    return render(request, "clusters/_history.html", context)


def _lines(
    id: str, title: str, text: str, labels: list[str], y: str, series: dict[str, list[Any]]
) -> dict[str, Any]:
    """Lines over time, for charts.js."""
    told = [{"name": name, "values": values} for name, values in series.items()]
    data = json.dumps({"labels": labels, "x": "UTC", "y": y, "series": told})
    return {"id": id, "json_id": f"{id}-data", "title": title, "text": text, "data": data}


@require_POST
@org_role(Role.ADMIN)
def add_node(request: OrgRequest, cluster: UUID) -> HttpResponse:
    home = _cluster(request, cluster)
    try:
        node = UUID(request.POST.get("node", ""))
    except ValueError:
        messages.error(request, "Choose a node.")
        return redirect(home)
    _try(
        request,
        lambda: actions.add_node(
            request.membership, home, node, operator=is_operator(request.user)
        ),
        "The node is in the cluster.",
    )
    return redirect(home)


@require_POST
@org_role(Role.ADMIN)
def remove_node(request: OrgRequest, cluster: UUID, node: UUID) -> HttpResponse:
    home = _cluster(request, cluster)
    get_object_or_404(ClusterNode, cluster=home, worker=node)
    _try(
        request,
        lambda: actions.remove_node(request.membership, home, node),
        "The node is out of the cluster. What runs there moves first.",
    )
    return redirect(home)


@require_POST
@org_role(Role.ADMIN)
def delete_cluster(request: OrgRequest, cluster: UUID) -> HttpResponse:
    home = _cluster(request, cluster)
    done = _try(
        request,
        lambda: actions.delete_cluster(request.membership, home),
        f"The cluster {home} is deleted.",
    )
    return redirect("clusters:clusters" if done else home)


def _try(request: OrgRequest, act: Callable[[], Any], done: str) -> bool:
    """Do it and say so, or say why it can't be done."""
    try:
        act()
    except FlowError as refusal:
        messages.error(request, refusal.detail)
        return False
    messages.success(request, done)
    return True


# --- Deployments ---


def _row(one: Deployment) -> dict[str, Any]:
    return {
        "pk": one.pk,
        "name": one.name,
        "state": SHOWN_STATE.get(one.state, one.state),
        "is_moving": one.state not in {"running", "stopped"} or one.ready < one.replicas,
        "ready": one.ready,
        "replicas": one.replicas,
        "priority": Priority(one.priority).label.capitalize(),
        "needs": words.amounts(one.needs),
        "revision": one.revision.number if one.revision else None,
        "waits": said.waits(one),
        "preempted_by": one.preempted_by,
        "error": one.error if one.failures else "",
        "cluster_id": one.cluster_id,
        "created_at": one.created_at,
    }


@require_GET
@org_role(Role.VIEWER)
def deployments(request: OrgRequest) -> HttpResponse:
    mine = Deployment.objects.of(request.membership.organization).there()
    found = mine.select_related("cluster", "revision").order_by("-created_at", "pk")
    page = Paginator(found, PER_PAGE).get_page(request.GET.get("page"))
    rows = [{**_row(one), "cluster": one.cluster.name} for one in page]
    page.object_list = rows  # type: ignore[assignment]
    context = {
        "section": "deployments",
        "page": page,
        "moving": any(row["is_moving"] for row in rows),
        "may_change": request.membership.may(Role.DEVELOPER),
    }
    return render(request, "clusters/deployments.html", context)


_FIELDS = (
    "name", "cluster_id", "model", "required_ram_gb", "required_cpu_cores", "required_gpu_count",
    "priority", "replicas", "docker_image", "port", "health_path", "follows",
)  # fmt: skip


@require_http_methods(["GET", "POST"])
@org_role(Role.DEVELOPER)
def new_deployment(request: OrgRequest) -> HttpResponse:
    home = request.membership.organization
    usual = {"required_ram_gb": "1", "required_cpu_cores": "0.5", "required_gpu_count": "0",
             "priority": "MEDIUM", "replicas": "1", "preemptible": True, "port": "8080",
             "health_path": "/health"}  # fmt: skip
    values: dict[str, Any] = {**usual, "model": request.GET.get("model", "")}
    errors: dict[str, Any] = {}
    if request.method == "POST":
        values = {key: request.POST.get(key, "").strip() for key in _FIELDS}
        values |= {key: key in request.POST for key in ("preemptible", "spread")}
        values["env"] = request.POST.get("env", "")
        sent = {k: v for k, v in values.items() if v != ""} | {"env": _variables(values["env"])}
        if sent.get("follows"):
            sent.pop("model", None)
        form = said.NewDeployment(data=sent)
        if form.is_valid():
            needs = form.needs(1024, 500, 0)
            wish = dict(form.validated_data)
            try:
                made = actions.deploy(
                    request.membership, cluster=wish.pop("cluster_id", None), needs=needs, **wish
                )
                return redirect(made)
            except FlowError as refusal:
                errors = _refused(refusal, sent)
        else:
            errors = {key: [str(one) for one in ones] for key, ones in form.errors.items()}
    chosen = _model(home, values.get("model", ""))
    if chosen is not None and not values.get("name"):
        values["name"] = _name_for(chosen)
    clusters = totals.counted(Cluster.objects.of(home)).order_by("name")
    context = {
        "section": "deployments",
        "values": values,
        "errors": errors,
        "other_errors": _elsewhere(errors, {*_FIELDS, "env"}),
        "is_container": request.GET.get("what") == "container" or bool(values.get("docker_image")),
        "registries": settings.CONTAINER_REGISTRIES,
        "models": _models(home, chosen),
        "clusters": [
            {"pk": str(one.pk), "name": one.name, "nodes": one.node_count} for one in clusters
        ],
        "priorities": [(one.name, one.label.capitalize()) for one in Priority],
        "may_make_cluster": request.membership.may(Role.ADMIN),
    }
    return render(request, "clusters/new_deployment.html", context, status=400 if errors else 200)


def _refused(refusal: FlowError, sent: dict[str, Any]) -> dict[str, Any]:
    """What to say at which field. Raises Http404 where an id was another's or nobody's."""
    if refusal.status == 404 and sent.get("follows"):
        return {"follows": [refusal.detail]}
    if refusal.status == 404:
        raise Http404(refusal.detail) from refusal
    return refusal.errors or {"": [refusal.detail]}


def _variables(text: str) -> dict[str, str]:
    """Of lines NAME=value."""
    pairs = (line.partition("=") for line in text.splitlines() if line.strip())
    return {name.strip(): value for name, _, value in pairs}


def _model(home: Any, text: str) -> TrainedModel | None:
    try:
        pk = UUID(text)
    except ValueError:
        return None
    found = TrainedModel.objects.of(home).select_related("job").filter(pk=pk).first()
    return found if found is not None and found.is_usable else None


def _models(home: Any, chosen: TrainedModel | None) -> list[dict[str, str]]:
    """The best of each training, newest first, and the one that was chosen."""
    jobs = TrainingJob.objects.of(home).filter(best_model__isnull=False)
    found = [
        {"pk": str(job.best_model_id), "name": f"{job.best_model}: {job.target}"}
        for job in jobs.select_related("best_model").order_by("-created_at")[:MODELS]
    ]
    if chosen is not None and str(chosen.pk) not in {one["pk"] for one in found}:
        found.insert(0, {"pk": str(chosen.pk), "name": f"{chosen}: {chosen.job.target}"})
    return found


def _beside(one: Deployment) -> list[dict[str, str]]:
    """What may be tried beside what runs: others of its training, then the best of each."""
    runs = one.revision.model if one.revision else None
    if runs is None:
        return []
    board = TrainedModel.objects.of(one.organization).leaderboard(runs.job_id)
    found = {
        str(model.pk): f"{model}: {runs.job.target}"
        for model in board.exclude(state=TrainedModel.State.INVALID)[:BESIDE]
    }
    found |= {model["pk"]: model["name"] for model in _models(one.organization, None)}
    found.pop(str(runs.pk), None)
    return [{"pk": pk, "name": name} for pk, name in found.items()]


def _name_for(model: TrainedModel) -> str:
    return slugify(model.job.target)[:40] or "model"


def _deployment(request: OrgRequest, deployment: UUID) -> Deployment:
    mine = Deployment.objects.of(request.membership.organization).there()
    found: Deployment = get_object_or_404(
        mine.select_related(
            "cluster", "revision__model__job", "canary__model", "retraining__best_model"
        ),
        pk=deployment,
    )
    found.organization = request.membership.organization
    return found


def _shown(request: OrgRequest, one: Deployment) -> dict[str, Any]:
    """What the page and its moving part show."""
    last = one.placed.select_related("revision").order_by("-generation")
    active = list(last.filter(ended_at__isnull=True))
    ended = list(last.filter(ended_at__isnull=False)[:ENDED])
    for replica in (*active, *ended):
        replica.shown_state = SHOWN_STATE.get(replica.state, replica.state)  # type: ignore[attr-defined]
    events = Event.objects.filter(stream=one.topic).order_by("-seq")[:EVENTS]
    place = queue.place(one)
    return {
        "one": {**_row(one), "cluster": one.cluster.name},
        "deployment": one,
        "place": place[0] if place else None,
        "waiting": place[1] if place else 0,
        "replicas": [*active, *ended],
        "events": [_told(event) for event in events],
        "revisions": list(one.revisions.select_related("model")[:10]),
        "canary": said.canary(one),
        "retrained": _retrained(one),
        "may_change": request.membership.may(Role.DEVELOPER),
    }


def _retrained(one: Deployment) -> dict[str, Any] | None:
    """The last training that was started here, and the model to try if it made a new one."""
    job = one.retraining
    if job is None:
        return None
    best = job.best_model if job.state == TrainingJob.State.SUCCEEDED else None
    known = {getattr(each, "model_id", None) for each in (one.revision, one.canary)}
    return {
        "job": job,
        "is_over": job.state not in TrainingJob.ACTIVE,
        "model": best if best is not None and best.pk not in known else None,
    }


def _told(event: Event) -> dict[str, Any]:
    """An event as a line."""
    data = event.data
    kind, _, what = event.type.partition(".")
    if kind == "replica":
        text = f"Replica {data.get('replica', 0)} on {data.get('node') or 'no node'}: {what}"
    elif what == "waits":
        text = words.reason(data)
    elif what == "changed":
        changes = data.get("changes") or {}
        text = f"{data.get('by', '')} changed " + ", ".join(
            f"{key.replace('_', ' ')} to {value}" for key, value in changes.items()
        )
    elif what == "drift":
        text = "It is asked about other values than it was trained on: " + ", ".join(
            data.get("columns") or []
        )
    elif what == "no-drift":
        text = "It is asked about values as it was trained on again"
    elif what == "canary-abandoned":
        who = data.get("by", "")
        text = f"{who} abandoned the canary, revision {data.get('revision')}"
    elif what == "retraining":
        text = f"{data.get('by', '')} started the same training on the newest data"
    elif what == "alias-not-followed":
        text = f"What {data.get('alias', '')} means now can't run here"
    elif what == "stop-asked":
        text = f"{data.get('by', '')} asked it to stop"
    else:
        text = what.capitalize()
    return {"at": event.at, "text": text, "why": data.get("why", "")}


@require_GET
@org_role(Role.VIEWER)
def deployment(request: OrgRequest, deployment: UUID) -> HttpResponse:
    one = _deployment(request, deployment)
    after = last_seq(one.topic)
    context = {
        "section": "deployments",
        "after": after,
        "snippet": _snippet(one),
        "priorities": [(level.name, level.label.capitalize()) for level in Priority],
        "models": _beside(one),
        "dependents": actions.dependents(one),
        "needed": [
            {"pk": edge.needs_id, "name": edge.needs.name}
            for edge in one.dependencies.select_related("needs")
        ],
        **_shown(request, one),
    }
    return render(request, "clusters/deployment.html", context)


@require_GET
@org_role(Role.VIEWER)
def deployment_live(request: OrgRequest, deployment: UUID) -> HttpResponse:
    one = _deployment(request, deployment)
    return render(request, "clusters/_deployment_live.html", _shown(request, one))


@require_GET
@org_role(Role.VIEWER)
def logs(request: OrgRequest, deployment: UUID) -> HttpResponse:
    """The last lines that its replicas have printed."""
    one = _deployment(request, deployment)
    lines = list(one.log_lines.order_by("-id")[:LINES])[::-1]
    return render(request, "clusters/_logs.html", {"one": one, "lines": lines})


@require_GET
@org_role(Role.VIEWER)
def watched(request: OrgRequest, deployment: UUID) -> HttpResponse:
    """What it was asked lately, how quickly it answered, and how far that is from training."""
    one = _deployment(request, deployment)
    text = request.GET.get("hours", "")
    hours = int(text) if text.isdecimal() and len(text) < 4 and int(text) in HOURS else 1
    steps = watch.served(one, hours, HOURS[hours])
    shape = "H:i" if hours == 1 else "D H:i"
    labels = [date_format(step["at"], shape) for step in steps]

    def chart(id: str, title: str, text: str, y: str, **series: str) -> dict[str, Any]:
        values = {name: [step[key] for step in steps] for name, key in series.items()}
        return _lines(id, title, text, labels, y, values)

    context = {
        "one": _row(one),
        "hours": hours,
        "choices": [(1, "Last hour"), (24, "Last day"), (168, "Last week")],
        "requests": sum(step["requests"] for step in steps),
        "charts": [
            chart("requests", "Requests", f"In steps of {HOURS[hours]} min.", "requests",
                  All="requests", Refused="refused", Errors="errors"),
            chart("latency", "Time to answer", "Percentiles, to within 19%.", "ms",
                  Median="p50_ms", p95="p95_ms", p99="p99_ms"),
        ],
        "steps": [step for step in reversed(steps) if step["requests"]],
        "revisions": watch.together(one, hours),
        "kept": one.sampled.count(),
        "samples": one.samples,
        "threshold": one.drift_threshold,
        "report": one.drift_reports.order_by("-at").first(),
        "least": drift.LEAST_ROWS,
        "right": outcomes.by_day(one, DAYS),
        "is_container": bool(one.revision and one.revision.image),
        "may_change": request.membership.may(Role.DEVELOPER),
    }  # fmt: skip
    return render(request, "clusters/_watch.html", context)


def _snippet(one: Deployment) -> str:
    """A line of curl that asks it, with a row of the model's columns."""
    if one.revision is not None and one.revision.image:
        return (
            f"curl -s {settings.PUBLIC_URL}/api/deployments/{one.pk}/http"
            f'{one.revision.health_path} \\\n  -H "Authorization: Bearer $TOKEN"'
        )
    model = one.revision.model if one.revision else None
    row = typical_row(model) if model is not None else {}
    body = json.dumps({"rows": [row]}, ensure_ascii=False).replace("'", "'\\''")
    return (
        f"curl -s {settings.PUBLIC_URL}/api/deployments/{one.pk}/predict \\\n"
        '  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \\\n'
        f"  -d '{body}'"
    )


@require_POST
@org_role(Role.DEVELOPER)
def change(request: OrgRequest, deployment: UUID) -> HttpResponse:
    """Scale it, change its urgency, or whether samples are kept."""
    one = _deployment(request, deployment)
    known = ("replicas", "priority", "samples")
    sent = {key: request.POST[key] for key in known if request.POST.get(key)}
    form = said.DeploymentChange(data=sent)
    if not form.is_valid():
        messages.error(request, f"Choose 1 to {actions.MOST_REPLICAS} replicas, and a priority.")
        return redirect(one)
    _try(
        request,
        lambda: actions.change(request.membership, one, **form.validated_data),
        f"{one} is changed.",
    )
    return redirect(one)


@require_http_methods(["GET", "POST"])
@org_role(Role.DEVELOPER)
def revise(request: OrgRequest, deployment: UUID) -> HttpResponse:
    """Let it run something else: another model or image, or the same with other variables."""
    one = _deployment(request, deployment)
    now = one.revision
    if now is None:
        raise Http404("It has no revision.")
    fields = ("docker_image", "port", "health_path") if now.image else ("model", "follows")
    is_now = {"docker_image": now.image, "port": str(now.port), "health_path": now.health_path,
              "model": str(now.model_id), "follows": one.follows}  # fmt: skip
    values: dict[str, Any] = {key: is_now[key] for key in fields}
    errors: dict[str, Any] = {}
    if request.method == "POST":
        values = {key: request.POST.get(key, is_now[key]).strip() for key in fields}
        values |= {"env": request.POST.get("env", ""), "no_env": "no_env" in request.POST}
        sent = _revised(values, is_now)
        form = said.DeploymentChange(data=sent)
        if not sent:
            errors = {"": ["This is what it runs already."]}
        elif form.is_valid():
            try:
                changed = actions.change(request.membership, one, **form.validated_data)
            except FlowError as refusal:
                errors = _refused(refusal, sent)
            else:
                made = changed.revision
                if made is None or made.number == now.number:
                    done = f"{one} is changed."
                elif changed.is_started:
                    done = f"Revision {made.number} of {one} is rolled out."
                else:
                    done = f"Revision {made.number} of {one} runs once it is started."
                messages.success(request, done)
                return redirect(one)
        else:
            errors = {key: [str(each) for each in those] for key, those in form.errors.items()}
    context = {
        "section": "deployments",
        "one": one,
        "revision": now,
        "values": values,
        "errors": errors,
        "other_errors": _elsewhere(errors, {*fields, "env"}),
        "is_container": bool(now.image),
        "registries": settings.CONTAINER_REGISTRIES,
        "models": [] if now.image else _models(request.membership.organization, now.model),
    }
    return render(request, "clusters/revise.html", context, status=400 if errors else 200)


def _revised(values: dict[str, Any], is_now: dict[str, str]) -> dict[str, Any]:
    """Of what a form holds, what is to change. An image is rolled out again though it is the same:
    its tag may mean another one by now."""
    sent: dict[str, Any] = {
        key: value
        for key, value in values.items()
        if key in is_now and (value != is_now[key] or key == "docker_image")
    }
    if sent.get("follows"):
        sent.pop("model", None)  # the name says which
    if values["env"].strip():
        sent["env"] = _variables(values["env"])
    elif values["no_env"]:
        sent["env"] = {}
    return sent


@require_POST
@org_role(Role.DEVELOPER)
def canary(request: OrgRequest, deployment: UUID) -> HttpResponse:
    """Try another model beside it, or change its share of the requests."""
    one = _deployment(request, deployment)
    wish = {key: request.POST[key] for key in ("model", "percent") if request.POST.get(key)}
    form = said.Canary(data={**wish, "shadow": "shadow" in request.POST})
    if not form.is_valid():
        messages.error(request, "Choose a model, and 0 to 100 percent of the requests.")
        return redirect(one)
    if "model" in wish:
        get_object_or_404(
            TrainedModel.objects.of(request.membership.organization), pk=wish["model"]
        )
    _try(
        request,
        lambda: actions.change(request.membership, one, canary=form.validated_data),
        f"{one} has a canary.",
    )
    return redirect(one)


@require_POST
@org_role(Role.DEVELOPER)
def act(request: OrgRequest, deployment: UUID, action: str) -> HttpResponse:
    """Stop, start, roll back or delete it."""
    one = _deployment(request, deployment)
    do, done = DOES[action]
    more = {}
    if action == "rollback" and request.POST.get("revision", "").isdecimal():
        more = {"number": int(request.POST["revision"][:9])}
    went: bool = _try(request, lambda: do(request.membership, one, **more), f"{one} {done}")  # type: ignore[operator]
    return redirect("clusters:deployments" if went and action == "delete" else one)
