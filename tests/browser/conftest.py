"""A real Chromium against a real installation; screenshots land in test-artifacts/."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    expect,
    sync_playwright,
)

from flowml_site.platform import Platform
from tests.seeds import seed

ROOT = Path(__file__).resolve().parent.parent.parent
ARTIFACTS = ROOT / "test-artifacts" / "browser"
OPERATOR, PASSWORD = "operator", "a long way home 7"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A page that a test hands over counts as public, and may then not talk to this machine.
    "--disable-features=LocalNetworkAccessChecks",
]


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The whole installation, or the one at FLOWML_TEST_VAR that runs already."""
    running = os.environ.get("FLOWML_TEST_VAR")
    if running:
        yield Platform(Path(running))
        return
    var = tmp_path_factory.mktemp("browser") / "var"
    seed(var)
    with Platform(var) as started:
        yield started


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium here (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


# htmx calls it an error when a newer request takes an older one's place, which pages ask for
# (hx-sync). A request that fails is told as htmx:sendError or htmx:responseError.
REPLACED = ("htmx:sendAbort", "htmx:afterRequest")


class Visitor:
    """A person with a browser window. Everything that goes wrong in it is kept in ``problems``."""

    def __init__(self, context: BrowserContext, base: str, name: str) -> None:
        self.context, self.base, self.name = context, base, name
        self.problems: list[str] = []
        self.expected: list[str] = []  # parts of problems that a test causes on purpose
        self.page = context.new_page()
        self.watch(self.page)

    def watch(self, page: Page) -> None:
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        page.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(REPLACED):
            self.problems.append(f"console {message.type}: {message.text} ({message.location})")

    def _asked(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if (
            parts.scheme in {"http", "https", "ws", "wss"}
            and parts.netloc != urlsplit(self.base).netloc
        ):
            self.problems.append(f"asked another host: {request.url}")

    def go(self, path: str) -> None:
        self.page.goto(self.base + path)

    def shot(self, name: str) -> Path:
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        path = ARTIFACTS / f"{self.name}-{name}.png"
        self.page.screenshot(path=path, full_page=True)
        return path

    def wider_than_the_window(self) -> int:
        """By how many pixels the page scrolls sideways; 0 as it should be."""
        return int(
            self.page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
        )

    def check(self) -> None:
        left = [p for p in self.problems if not any(part in p for part in self.expected)]
        assert not left, "\n".join(left)


NewVisitor = Callable[..., Visitor]


def sign_in(who: Visitor, name: str) -> Page:
    page = who.page
    who.go("/sign-in")
    page.get_by_label("Name or e-mail").fill(name)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()
    return page


@pytest.fixture(scope="session")
def operator(chromium: Browser, platform: Platform) -> str:
    """The operator's name. The first account is the operator's, so all tests begin with this."""
    who = Visitor(chromium.new_context(), platform.url, OPERATOR)
    who.go("/")
    if "/sign-up" in who.page.url:
        who.page.get_by_label("Name", exact=True).fill(OPERATOR)
        who.page.get_by_label("E-mail").fill("operator@example.org")
        who.page.get_by_label("Password").fill(PASSWORD)
        who.page.get_by_role("button", name="Make the account").click()
    else:  # an installation that stays up, set up by an earlier run
        sign_in(who, OPERATOR)
    expect(who.page.get_by_role("link", name="Operator console")).to_be_visible()
    who.context.close()
    return OPERATOR


@pytest.fixture
def visitor(
    chromium: Browser, platform: Platform, operator: str, request: pytest.FixtureRequest
) -> Iterator[NewVisitor]:
    """Opens windows; at the end of the test each must have been without problems."""
    made: list[Visitor] = []

    def open_window(
        name: str = "",
        *,
        width: int = 1280,
        height: int = 900,
        theme: str = "light",
        **more: object,
    ) -> Visitor:
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=theme,  # type: ignore[arg-type]
        )
        context.set_default_timeout(30_000)
        made.append(Visitor(context, platform.url, name or request.node.name))
        return made[-1]

    yield open_window
    for one in made:
        one.context.close()
    for one in made:
        one.check()
