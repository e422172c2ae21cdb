"""Tests the dashboard in headless Chromium, under a mount: what it shows, axe, and no XSS.

The screenshots of the documentation are made here, if ``EMBEDROUTE_SCREENSHOTS`` names a folder.
"""

import json
import os
import re
import shutil
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.dashboard.served import KEY, PLAIN_KEY, XSS
from tests.support.commands import run
from tests.support.serving import Serving

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("EMBEDROUTE_SCREENSHOTS")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def mount():
    with Serving("tests.dashboard.served", debug=False) as server:
        yield f"{server.url}/deep/ai"


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The source of axe-core from npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("axe")
    run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "axe-core@4"], folder)
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


class Page:
    """A page of the dashboard; ``errors`` are what the browser reports, apart from a 401 or 403."""

    def __init__(self, browser, mount, **options):
        self.context = browser.new_context(**{"bypass_csp": False, **options})
        self.page = self.context.new_page()
        self.errors = []
        self.foreign = []
        self.page.on("dialog", lambda dialog: (self.errors.append("dialog"), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._record)
        self.page.on("request", self._see)
        self._origin = "/".join(mount.split("/")[:3])
        self.page.goto(f"{mount}/dashboard")

    def _record(self, message):
        if message.type == "error" and not re.search(r"status of 40[13]", message.text):
            self.errors.append(message.text)

    def _see(self, request):
        if not request.url.startswith((self._origin, "blob:")):
            self.foreign.append(request.url)

    def log_in(self, key=KEY):
        self.page.fill("#key", key)
        self.page.click("#access-form button")
        return self.page


@pytest.fixture
def opened(chromium, mount):
    opened = Page(chromium, mount, viewport={"width": 1360, "height": 1000})
    yield opened
    opened.context.close()
    assert opened.errors == []
    assert opened.foreign == []


def send(mount, count, key=KEY, model="notes", text="text"):
    """Send requests one after the other; their statuses."""
    with httpx2.Client(headers={"authorization": f"Bearer {key}"}, timeout=30) as client:
        return [
            client.post(
                f"{mount}/v1/embeddings",
                json={"model": model, "input": [f"{text} {at} a", f"{text} {at} b"]},
            ).status_code
            for at in range(count)
        ]


def row_of(page, provider):
    return page.locator("#endpoints tbody tr").filter(
        has=page.locator("th", has_text=re.compile(f"^{provider}notes"))
    )


def take(page, name):
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def test_an_operator_sees_which_endpoint_is_slow_limited_or_lying(opened, mount):
    assert set(send(mount, 40)) == {200}

    page = opened.log_in()

    expect(row_of(page, "limited")).to_contain_text("rate limited (429)")
    expect(row_of(page, "lying")).to_contain_text("wrong answers")
    expect(row_of(page, "lying")).to_contain_text("1 rows for 2 inputs")
    expect(row_of(page, "slow")).to_contain_text(re.compile(r"slow: \d+ . the fastest"))
    expect(row_of(page, "local")).to_contain_text("answered")
    expect(row_of(page, "local")).not_to_contain_text("slow")
    take(page, "dashboard")


def test_a_request_opens_its_calls_and_the_reasons(opened, mount):
    send(mount, 30, text="further")
    page = opened.log_in()
    button = page.locator("#requests tr", has_text=re.compile("notes.*→")).locator("button").first

    button.focus()
    page.keyboard.press("Enter")

    detail = page.locator("tr.detail")
    expect(detail.locator(".track")).not_to_have_count(0)
    expect(detail).to_contain_text("select: ordered")
    expect(page.locator("#requests button:focus")).to_have_attribute("aria-expanded", "true")
    take(page, "request")


def test_the_charts_move_under_load(opened, mount):
    page = opened.log_in()
    before = page.locator("#tiles .tile").first.locator(".note").inner_text()
    line = page.locator("#tiles path.line").first
    path = line.get_attribute("d")

    send(mount, 5, text="moved")

    expect(page.locator("#tiles .tile").first.locator(".note")).not_to_have_text(before)
    expect(page.locator("#tiles path.line").first).not_to_have_attribute("d", path)


def test_a_paused_page_sends_nothing(opened):
    page = opened.log_in()
    expect(page.locator("#endpoints table")).to_be_visible()
    page.click("#pause")
    expect(page.locator("#status")).to_have_text("Paused")
    sent = []
    page.on("request", lambda request: sent.append(request.url))

    page.wait_for_timeout(2500)

    assert sent == []


def test_a_key_that_may_not_debug_sees_nothing(opened):
    page = opened.log_in(PLAIN_KEY)

    expect(page.locator("#access-reason")).to_contain_text("403")
    expect(page.locator("#traffic")).to_be_hidden()
    expect(page.locator("#playground")).to_be_hidden()


def test_the_playground_finds_the_nearest_pair(opened):
    page = opened.log_in()
    page.click("#tab-playground")
    page.fill("#texts", "cat on a mat\nstock prices fall\ncat in a hat\nrain in spain")
    page.select_option("#model-b", XSS)
    page.click("#play .primary")

    expect(page.locator(".result")).to_have_count(2)
    for nearest in page.locator(".nearest").all():
        expect(nearest).to_contain_text("“cat on a mat” and “cat in a hat”")
    expect(page.locator(".map circle")).to_have_count(8)
    expect(page.locator(".facts").first).to_contain_text("32")
    take(page, "playground")


def test_explain_shows_the_order(opened):
    page = opened.log_in()
    page.click("#tab-playground")
    page.click("#explain")

    expect(page.locator("ol.plan li")).to_have_count(4)
    take(page, "explain")


@pytest.mark.parametrize("kind", ["curl", "python", "javascript"])
def test_the_request_is_copied_without_the_key(opened, kind):
    page = opened.log_in()
    page.click("#tab-playground")
    page.evaluate("navigator.clipboard.writeText = undefined")
    page.fill("#texts", "it's")
    page.click(f"[data-copy={kind}]")

    shown = page.locator("#results pre")
    expect(shown).to_contain_text("/deep/ai/v1")
    assert KEY not in shown.inner_text()


def test_names_texts_and_errors_cannot_become_markup(opened, mount):
    """A model of the config, a model that a client sends, a caller, an error and a text."""
    send(mount, 5, key=PLAIN_KEY, text=XSS)
    send(mount, 1, model=XSS)
    send(mount, 1, model=f"{XSS}<script>alert(1)</script>")
    page = opened.log_in()
    expect(page.locator("#requests")).to_contain_text("<script>alert(1)</script>")
    expect(page.locator("#callers")).to_contain_text("team <b>")
    expect(page.locator("#endpoints")).to_contain_text(XSS)

    page.click("#tab-playground")
    page.fill("#texts", f"{XSS}\n<b>b</b>\n<script>alert(2)</script>")
    page.click("#play .primary")
    expect(page.locator(".result")).to_contain_text(XSS)
    page.click("#tab-traffic")

    assert page.locator("main img, main script, main b").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", ["access", "traffic", "playground", "print"])
def test_axe_finds_nothing_serious(chromium, mount, axe, view, scheme):
    send(mount, 3, text="axe")
    opened = Page(chromium, mount, color_scheme=scheme, bypass_csp=True)
    page = opened.page
    page.wait_for_selector("#access:not([hidden])")
    if view != "access":
        opened.log_in()
        page.wait_for_selector("#requests table")
        page.locator("#requests button").first.click()
    if view == "print":
        page.emulate_media(media="print")
    if view == "playground":
        page.click("#tab-playground")
        page.click("#play .primary")
        page.wait_for_selector(".map")
    page.evaluate(axe)

    found = page.evaluate("axe.run().then((results) => results.violations)")

    opened.context.close()
    serious = [
        (item["id"], [node["html"] for node in item["nodes"]])
        for item in found
        if item["impact"] in {"serious", "critical"}
    ]
    assert serious == [], json.dumps(serious, indent=1)
