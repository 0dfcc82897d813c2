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
                "associations": f"{data}?tab=associations&of=species",
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
                "account": "/account",
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


# What a person without a mouse, or without eyes, would stumble over: things that take no focus or
# don't show it, an order of their own, landmarks that are missing or have no name.
BY_KEYBOARD = """() => {
  const bad = [];
  const named = (one) => one.outerHTML.replace(/\\s+/g, " ").slice(0, 150);
  const look = (one) => [one, one.closest("label"), one.parentElement].map((part) => {
    const style = part && getComputedStyle(part);
    return style && [style.outlineStyle, style.outlineWidth, style.outlineColor, style.boxShadow,
      style.borderColor].join();
  }).join("|");
  const all = "a[href], button, input, select, textarea, summary, [tabindex]";
  for (const one of document.querySelectorAll(all)) {
    if (one.disabled || one.type === "hidden" || one.tabIndex < 0) continue;
    if (!one.checkVisibility({visibilityProperty: true}) || !one.getClientRects().length) continue;
    if (one.tabIndex > 0) bad.push("comes out of turn: " + named(one));
    one.blur();
    const before = look(one);
    one.focus({preventScroll: true});
    if (document.activeElement !== one) bad.push("takes no focus: " + named(one));
    else if (look(one) === before) bad.push("does not show the focus: " + named(one));
  }
  for (const what of ["main", "h1"]) {
    const found = document.querySelectorAll(what).length;
    if (found !== 1) bad.push(`${found} times ${what}`);
  }
  for (const one of document.querySelectorAll("nav, .scroll-x[tabindex]"))
    if (!one.ariaLabel && !one.hasAttribute("aria-labelledby")) bad.push("no name: " + named(one));
  if (!document.querySelector("[aria-live=polite]#announce")) bad.push("no live region");
  return [...new Set(bad)];
}"""


def by_keyboard(who: Visitor) -> list[str]:
    """What is wrong with the page for a reader without a mouse. The first stop skips the rail."""
    who.page.keyboard.press("Tab")
    first = who.page.evaluate("document.activeElement.getAttribute('href')")
    found: list[str] = who.page.evaluate(BY_KEYBOARD)
    return found if first == "#content" else [f"the first stop is {first}", *found]


def settle(who: Visitor) -> None:
    """Wait until nothing was fetched for a moment: a third of what "networkidle" takes."""
    who.page.wait_for_function(
        "() => !document.querySelector('.htmx-request') && performance.now() > 150 + "
        "Math.max(0, ...performance.getEntriesByType('resource').map((one) => one.responseEnd))"
    )


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
        settle(who)
        who.shot(name)
        if wider := who.wider_than_the_window():
            problems.append(f"{name}: {wider} pixels wider than the window")
        problems += [f"{name}: {finding}" for finding in serious(who)]
        if width == 1280:  # last: it moves the focus
            problems += [f"{name}: {finding}" for finding in by_keyboard(who)]
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
