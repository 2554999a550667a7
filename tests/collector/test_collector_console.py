# SPDX-License-Identifier: Apache-2.0
"""The console in a real browser, over a fleet whose records were pulled: every view, the keyboard,
what comes live, and that nothing is loaded from elsewhere. Screenshots are kept beside the results
($LEASED_ARTIFACTS, or the test's own directory).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.collector.accounts import periods
from leased.collector.api.callers import hash_of
from leased.collector.console import POLICY, pages
from leased.terms.quantity import print_instant
from tests.collector.test_collector_api_fleet import LAST_MONTH, await_books
from tests.doubles.browser import Browser
from tests.doubles.collector_server import REPOSITORY, CollectorServer
from tests.doubles.fleet_archive import sample
from tests.doubles.host import not_proven

VIEWS = ("fleet", "nodes", "leases", "tenants", "bill", "chains", "waste", "hooks")
FIRST_PAINT_MS_MAX = 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectorServer]:
    directory = tmp_path_factory.mktemp("console")
    sample(directory / "state", time.time_ns())
    more = '[webhooks]\nprivate_networks = ["127.0.0.0/8"]\ntimeout = "1s"'
    with CollectorServer(directory=directory, more=more) as running:
        await_books(running)
        hook = {"url": "https://127.0.0.1:9/told", "events": ["quota.*"], "description": "ours"}
        assert running.ask("POST", "/v1/webhooks", hook).status == 201
        body = {"cpu_cores": 100, "memory_gb": 128, "reason": "<b>first</b> quota"}
        running.ask("PATCH", "/v1/governance/quotas/tenant-acme", body)
        yield running


@pytest.fixture
def browser() -> Iterator[Browser]:
    if shutil.which("chromium") is None:
        not_proven("the console in a browser", "chromium is not installed")
    with Browser() as running:
        yield running


def artifacts(tmp_path: Path) -> Path:
    directory = Path(os.environ.get("LEASED_ARTIFACTS", tmp_path)) / "console"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def show(browser: Browser, view: str) -> str:
    """Go to a view, wait until it is drawn; what stands on it."""
    browser.evaluate(f"void (location.hash = {view!r})")
    name = view.split("/")[0]
    browser.wait(
        f"location.hash === '#{view}' && document.querySelector('.link.on')"
        f" && document.querySelector('#tabs [aria-current=page]').dataset.view === '{name}'"
        f" && document.getElementById('main').dataset.view === '#{view}'"
        " && document.getElementById('main').dataset.drawn"
    )
    return browser.text()


def test_every_view_shows_the_fleet_and_loads_nothing_from_elsewhere(
    server: CollectorServer, browser: Browser, tmp_path: Path
) -> None:
    browser.open(server.url + "/")
    # Its nodes are the stream's; the latest records, which name them, too, are there before.
    browser.wait("document.querySelector('.heat')?.innerText.includes('host-b')")
    wanted = {
        "fleet": ("host-a", "host-b", "2 nodes", "Leases that end next"),
        "nodes": ("host-a", "active", "idle", "65 / 400"),
        "leases": ("tenant-acme", "45 cores", "128 GiB", "fenced"),
        "tenants": ("tenant-acme", "beta", "45 / 100", "128 / 128"),
        "bill": ("INV-", "Computed from these records", "host-a"),
        "chains": ("host-b", "OK", "<b>first</b> quota", "leased/policy+"),
        "waste": ("idle", "host-b", "Cost by tenant"),
        "hooks": ("https://127.0.0.1:9/told", "quota.*", "everybody", "ours"),
    }
    for view in VIEWS:
        text = show(browser, view)
        for word in wanted[view]:
            if word != "2 nodes":
                assert word in text, (view, word, text)
        browser.screenshot(artifacts(tmp_path) / f"{view}.png")
    text = show(browser, f"bill/tenant-acme/{LAST_MONTH}")
    assert "144.00" in text and "core-second" in text
    browser.wait("document.querySelector('.uplot canvas')")
    # What is charted, and taken along as CSV, are the hours of the bill: all of its days.
    hours = browser.evaluate("document.querySelector('main a[download]').getAttribute('href')")
    month = periods.month(LAST_MONTH)
    begin, end = print_instant(month.from_ns), print_instant(month.to_ns)
    assert f"&start={begin}&end={end}&" in hours and hours.endswith("format=csv")
    assert server.ask("GET", hours).status == 200
    text = show(browser, "tenants/tenant-acme")
    assert "Sealed changes" in text and "<b>first</b> quota" in text
    browser.screenshot(artifacts(tmp_path) / "tenant.png")
    [hook] = server.ask("GET", "/v1/webhooks").json["webhooks"]
    text = show(browser, f"hooks/{hook['id']}")
    assert "quota.changed" in text and "Nothing was given up." in text
    assert f"leasectl collector webhook replay {hook['id']}" in text
    browser.screenshot(artifacts(tmp_path) / "webhook.png")
    assert browser.evaluate("document.querySelectorAll('main b').length") == 0
    outside = [one for one in browser.requests if not one.startswith(server.url)]
    assert (browser.complaints, outside) == ([], [])


def test_the_first_paint_comes_within_a_second(server: CollectorServer, browser: Browser) -> None:
    browser.open(server.url + "/")
    browser.wait("performance.getEntriesByName('first-contentful-paint').length")
    painted_ms = browser.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    assert painted_ms < FIRST_PAINT_MS_MAX


def test_the_keyboard_is_enough(server: CollectorServer, browser: Browser, tmp_path: Path) -> None:
    browser.open(server.url + "/")
    show(browser, "fleet")
    browser.press("4")
    drawn = "document.getElementById('main').dataset.view"
    browser.wait(f"{drawn} === '#tenants' && document.querySelector('main tr.go')")
    browser.press("j")
    chosen = browser.evaluate(
        "document.querySelector('main tr[aria-selected=true] td').textContent"
    )
    browser.press("Enter")
    browser.wait(f"location.hash === '#tenants/{chosen}'")
    browser.press("3")
    browser.wait(f"{drawn} === '#leases' && document.querySelector('main tr.go')")
    before = browser.evaluate("document.querySelectorAll('main tbody tr').length")
    browser.press("/")
    for letter in "beta":
        browser.press(letter)
    browser.wait(f"document.querySelectorAll('main tbody tr').length < {before}")
    browser.press("Escape")
    browser.wait(f"document.querySelectorAll('main tbody tr').length === {before}")
    dark = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    browser.press("t")
    browser.wait(f"getComputedStyle(document.body).backgroundColor !== {dark!r}")
    browser.screenshot(artifacts(tmp_path) / "light.png")
    browser.press("?")
    browser.wait("document.getElementById('help').open")
    assert browser.complaints == []


def test_who_needs_a_token_is_asked_for_one(browser: Browser, tmp_path: Path) -> None:
    sample(tmp_path / "state", time.time_ns())
    (tmp_path / "tokens.toml").write_text(
        f'[[tokens]]\nname = "a"\nsha256 = "{hash_of("s4")}"\nscopes = ["read", "cost"]\n'
    )
    access = 'loopback = "none"\ntokens_file = "tokens.toml"'
    with CollectorServer(access=access, directory=tmp_path) as server:
        browser.open(server.url + "/")
        browser.wait("document.getElementById('sign').open")
        browser.evaluate("void (document.getElementById('token').value = 's4')")
        browser.evaluate("document.querySelector('#sign button').click()")
        browser.wait("document.querySelector('.link.on')")
        browser.wait("document.body?.innerText.includes('host-a')")
        assert "s4" not in browser.evaluate("location.href")


def test_what_changes_is_told_at_once(tmp_path: Path, browser: Browser) -> None:
    """A collector that had nothing yet shows a node as soon as its records are there."""
    with CollectorServer(directory=tmp_path) as server:
        browser.open(server.url + "/")
        browser.wait("document.body?.innerText.includes('No node has been pulled yet')")
        sample(tmp_path / "state", time.time_ns())
        browser.wait("document.body?.innerText.includes('host-b')")
        assert browser.complaints == [] or all("503" in one for one in browser.complaints)


def test_files_are_served_with_the_policy_that_keeps_others_out(server: CollectorServer) -> None:
    names = [page.path for page in pages()]
    assert names[0] == "/" and "/console/uplot.LICENSE" in names
    for page in pages():
        answer = server.ask("GET", page.path)
        assert answer.body == page.content and answer.headers["content-type"] == page.media_type
        assert answer.headers["content-security-policy"] == POLICY
        again = server.ask("GET", page.path, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status == 304
        text = page.content.decode()
        if not page.path.startswith("/console/uplot"):
            assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")
            assert "https:" not in text and "innerHTML" not in text and "eval(" not in text
    assert "default-src 'none'" in POLICY and "unsafe" not in POLICY


def test_a_demo_fleet_is_made_served_and_looked_at(browser: Browser, tmp_path: Path) -> None:
    """`leased-collector --demo-fleet N`: chains by the real sealer over 90 days; begun again, it
    serves what is there."""
    config = tmp_path / "leased-collector.toml"
    config.write_text('[http]\nlisten = ["127.0.0.1:0"]\n')
    # Two nodes have a lease or two by night, and not one of each kind.
    words = ["--state", str(tmp_path / "state"), "--demo-fleet", "8", "--config", str(config)]
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-m", "leased.collector.main", *words],
            env={"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stderr is not None
                said = iter(process.stderr)
                url = next(line.split()[-1] for line in said if "serving http" in line)
                next(line for line in said if "usage is up to date" in line)
                browser.open(url.replace("127.0.0.1", "localhost") + "/")
                browser.wait("document.body?.innerText.includes('demo-001')")
                for view in ("leases", "chains", "waste"):
                    show(browser, view)
                for one in ("healthy", "idle", "unknown", "temperature"):
                    browser.wait(f"document.body?.innerText.includes('{one}')")
                browser.screenshot(artifacts(tmp_path) / "demo.png")
                browser.open("about:blank")
            finally:
                process.terminate()
            rest = list(said)
        assert process.returncode == 0, rest
    assert browser.complaints == []


@pytest.mark.parametrize("width", [1200, 800])
def test_a_narrow_window_needs_no_scrolling_sideways(server: CollectorServer, width: int) -> None:
    if shutil.which("chromium") is None:
        not_proven("the console in a narrow window", "chromium is not installed")
    with Browser(width=width) as narrow:
        narrow.open(server.url + "/")
        narrow.wait("document.body?.innerText.includes('host-b')")
        for view in VIEWS:
            show(narrow, view)
            within = "(one) => one.scrollWidth <= one.clientWidth"
            roots = "[document.documentElement, document.querySelector('header')]"
            assert narrow.evaluate(f"{roots}.every({within})"), view
