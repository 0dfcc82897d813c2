"""Each page at three widths, in light and dark: no axe finding that matters, nothing cut off,
and nothing that its content security policy refuses (it would be an error on the console)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Response, expect

from flowml_site.platform import Platform
from tests.browser.conftest import ROOT, NewVisitor, Visitor, sign_in

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.xdist_group("browser")]
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
LOOKS = [(360, "light"), (1280, "dark"), (2560, "light")]


@pytest.fixture(scope="module")
def trained(
    chromium: Browser, platform: Platform, operator: str
) -> Iterator[tuple[dict[str, str], list[Any]]]:
    """The operator's cookies and the addresses of all pages, after one training on a sample."""
    who = Visitor(chromium.new_context(), platform.url, "setup")
    page = sign_in(who, operator)
    who.go("/organizations")  # a new one, where nothing is yet
    page.get_by_label("Name", exact=True).fill("Every page")
    page.get_by_role("button", name="Make it").click()
    who.go("/")
    page.get_by_role("button", name="Train on Palmer penguins").click()
    target = page.get_by_label("What should be predicted?")
    expect(target).to_have_value("species", timeout=60_000)
    new = page.url
    page.get_by_label("Minutes of my own").fill("0.2")
    page.get_by_role("button", name="Start training").click()
    page.get_by_role("link", name="Open the best model").click(timeout=90_000)
    model = page.url.removeprefix(platform.url)
    job = page.get_by_role("link", name="species", exact=True).get_attribute("href")
    page.goto(f"{platform.url}{job}")
    data = page.get_by_role("link", name="Palmer penguins").get_attribute("href")
    ticks = page.locator("[data-compare]").evaluate_all("boxes => boxes.map(box => box.value)")
    compared = "&".join(f"model={one}" for one in ticks[:3])
    with lab(who) as cluster:
        deployment = deploy(who, model)
        yield (
            {
                "home": "/",
                "data": "/data",
                "columns": f"{data}",
                "rows": f"{data}?tab=rows",
                "versions": f"{data}?tab=versions",
                "new": new.removeprefix(platform.url),
                "trainings": "/training",
                "job": f"{job}",
                "models": "/models",
                "compare": f"/models/compare?{compared}",
                "model": model,
                "try": f"{model}?tab=try",
                "use": f"{model}?tab=use",
                "details": f"{model}?tab=details",
                "organization": "/organization",
                "organization-usage": "/organization?tab=usage",
                "organization-tokens": "/organization?tab=tokens",
                "organization-audit": "/organization?tab=audit",
                "organization-settings": "/organization?tab=settings",
                "organizations": "/organizations",
                "join": "/join",
                "workers": "/workers",
                "clusters": "/clusters",
                "new-cluster": "/clusters/new",
                "cluster": cluster,
                "deployments": "/deployments",
                "deploy": f"/deployments/new?model={model.rpartition('/')[2]}",
                "deployment": deployment,
            },
            who.context.cookies(),
        )
    who.context.close()


@contextmanager
def lab(who: Visitor) -> Iterator[str]:
    """The address of a cluster with the machine in it, which is free for another one afterwards."""
    page = who.page
    who.go("/clusters")
    page.get_by_role("link", name="New cluster").click()
    page.get_by_label("Name", exact=True).fill("lab")
    page.get_by_role("button", name="Make the cluster").click()
    expect(page.get_by_role("heading", name="lab")).to_be_visible()
    address = page.url.removeprefix(who.base)
    try:
        yield address
    finally:
        who.go(address)
        page.get_by_role("button", name="Take out").click()
        expect(page.get_by_text("The node is out of the cluster")).to_be_visible()


def deploy(who: Visitor, model: str) -> str:
    """Deploy the model to the only cluster; the address of the deployment."""
    page = who.page
    who.go(model)
    page.get_by_role("link", name="Deploy", exact=True).click()
    expect(page.get_by_label("Name", exact=True)).to_have_value("species")
    page.get_by_role("button", name="Deploy", exact=True).click()
    # Where other tests train beside this, loading an engine takes its time.
    expect(page.get_by_text("1 of 1 replica answers")).to_be_visible(timeout=240_000)
    return page.url.removeprefix(who.base)


def serious(who: Visitor) -> list[str]:
    """What axe-core finds of serious or critical impact."""
    source = AXE.read_text(encoding="utf-8")
    who.page.evaluate(source)  # by the debugger, which the page's policy does not bind
    found = who.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']} ({one['impact']}): {node['target']} {node.get('failureSummary', '')}"
        for one in found["violations"]
        if one["impact"] in {"serious", "critical"}
        for node in one["nodes"]
    ]


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed (npm ci)")
@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_every_page_is_accessible_and_whole(
    visitor: NewVisitor,
    trained: tuple[dict[str, str], list[Any]],
    width: int,
    theme: str,
) -> None:
    pages, cookies = trained
    who = visitor(f"{theme}-{width}", width=width, theme=theme)
    who.context.add_cookies(cookies)
    problems = []
    for name, path in pages.items():
        who.go(path)
        if name == "model":
            expect(who.page.locator("[data-chart] svg").first).to_be_visible()
        if name == "try":
            expect(who.page.locator("#answer .big-answer")).to_be_visible()
        who.page.wait_for_load_state("networkidle")
        who.shot(name)
        if wider := who.wider_than_the_window():
            problems.append(f"{name}: {wider} pixels wider than the window")
        problems += [f"{name}: {finding}" for finding in serious(who)]
    assert not problems, "\n".join(problems)


def test_signed_out_pages_are_accessible(visitor: NewVisitor) -> None:
    for theme in ("light", "dark"):
        who = visitor(f"out-{theme}", width=360, theme=theme)
        who.expected.append("404")
        for path in ("/sign-in", "/sign-up", "/nothing-here"):
            who.go(path)
            if AXE.is_file():
                assert not serious(who), path
            assert who.wider_than_the_window() == 0
            who.shot(path.strip("/"))


def test_pages_of_libraries_work_under_their_policies(visitor: NewVisitor, operator: str) -> None:
    who = visitor()
    page = sign_in(who, operator)
    who.expected.append("cdn.redoc.ly")  # a logo that Redoc asks for and the policy refuses
    for path in ("/api/docs", "/api/redoc"):
        who.go(path)
        title = page.get_by_role("heading", name=re.compile("FlowML API")).first
        expect(title).to_be_visible(timeout=60_000)
        who.page.wait_for_load_state("networkidle")
        who.shot(path.strip("/").replace("/", "-"))
    for path in ("/admin/", "/admin/workers/task/", "/admin/accounts/user/"):
        who.go(path)
        who.page.wait_for_load_state("networkidle")
        who.shot(path.strip("/").replace("/", "-"))


def test_the_menu_opens_on_a_small_screen_and_closes_with_escape(
    visitor: NewVisitor, trained: tuple[dict[str, str], list[Any]]
) -> None:
    who = visitor(width=360)
    who.context.add_cookies(trained[1])
    who.go("/data")
    rail = who.page.get_by_role("navigation", name="Main")
    expect(rail).to_be_hidden()
    who.page.get_by_role("button", name="Menu").click()
    expect(rail.get_by_role("link", name="Training")).to_be_visible()
    who.shot("open")
    who.page.keyboard.press("Escape")
    expect(rail).to_be_hidden()


def test_a_page_whose_session_has_ended_goes_to_the_sign_in_page(
    visitor: NewVisitor, trained: tuple[dict[str, str], list[Any]]
) -> None:
    who = visitor()
    who.context.add_cookies(trained[1])
    who.go("/data")
    who.context.clear_cookies()
    who.page.get_by_label("Search by name").type("pen")
    expect(who.page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert "next=/data" in who.page.url


def test_the_theme_is_kept_over_pages(
    visitor: NewVisitor, trained: tuple[dict[str, str], list[Any]]
) -> None:
    who = visitor(theme="light")
    who.context.add_cookies(trained[1])
    who.go("/")
    page = who.page
    for expected in ("light", "dark"):
        page.get_by_role("button", name=re.compile("^Theme")).click()
        assert page.evaluate("document.documentElement.dataset.bsTheme") == expected
    who.go("/data")
    assert page.evaluate("document.documentElement.dataset.bsTheme") == "dark"


def test_everything_works_without_a_script(
    chromium: Browser, platform: Platform, trained: tuple[dict[str, str], list[Any]]
) -> None:
    """Plain forms: upload, choose a target, start, cancel; a prediction."""
    context = chromium.new_context(java_script_enabled=False)
    context.add_cookies(trained[1])
    page = context.new_page()
    page.goto(f"{platform.url}/data")
    page.get_by_label("Drop a file here or choose one").set_input_files(ROOT / "data" / "iris.csv")
    page.get_by_role("button", name="Upload", exact=True).click()
    train = page.get_by_role("link", name="Train on this")
    for _ in range(60):
        if train.is_visible():
            break
        page.wait_for_timeout(500)
        page.reload()
    train.click()
    page.get_by_label("What should be predicted?").select_option("species")
    page.get_by_role("button", name="Look at this column").click()
    expect(page.locator("#finding")).to_contain_text("Multiclass classification")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("heading", name="Predict species")).to_be_visible()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the training").click()
    expect(page.get_by_text("is being cancelled")).to_be_visible()
    page.goto(f"{platform.url}{trained[0]['try']}")
    answer: Response | None = None
    with page.expect_navigation() as going:
        page.get_by_role("button", name="Predict", exact=True).click()
    answer = going.value
    assert answer is not None
    assert answer.status == 200
    expect(page.locator("#answer .big-answer")).to_be_visible()
    context.close()


def test_first_visit_weighs_little(visitor: NewVisitor, platform: Platform) -> None:
    """Compressed bytes of the first page after signing in, fonts and pictures included."""
    who = visitor()
    sizes: dict[str, int] = {}

    def weigh(response: Response) -> None:
        if response.url.startswith(platform.url):
            sizes[response.url] = response.request.sizes()["responseBodySize"]

    who.page.on("requestfinished", lambda request: weigh(request.response()))
    who.go("/sign-in")
    who.page.wait_for_load_state("networkidle")
    assert 0 < sum(sizes.values()) < 200_000, sizes
