# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, driven over its debugging pipe.

Rule: a browser of its own with a directory of its own, ended when the `with` ends. Waiting is for
what the page says, never for time to pass. What the page complains about (errors, blocked loads)
is kept, and `complaints` is what a test looks at last.

Does not know the console.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PATIENCE_S = 30.0


LEFT = "Inspected target navigated or closed"


class PageLeft(Exception):
    """The page was being left when it was asked."""


class Browser:
    """One browser with one page."""

    def __init__(self, *, width: int = 1440) -> None:
        self._width = width
        self._number = 0
        self._buffer = b""
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def __enter__(self) -> Browser:
        self._directory = tempfile.mkdtemp(prefix="leased-browser-")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def place() -> None:
            os.dup2(theirs_in, 3)
            os.dup2(theirs_out, 4)

        program = shutil.which("chromium")
        assert program is not None
        self._process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--remote-debugging-pipe",
                f"--user-data-dir={self._directory}",
                f"--window-size={self._width},900",
                "about:blank",
            ],
            preexec_fn=place,
            pass_fds=(3, 4, theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        targets = self._ask("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in targets if one["type"] == "page")
        attached = self._ask("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        features = [
            {"name": "prefers-color-scheme", "value": "dark"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.ask("Emulation.setEmulatedMedia", features=features)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._ask("Browser.close")
            self._process.wait(PATIENCE_S)
        except (OSError, AssertionError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._directory, ignore_errors=True)

    def ask(self, method: str, **parameters: Any) -> Any:
        """One call about the page."""
        return self._ask(method, self._session, **parameters)

    def _ask(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        self._number += 1
        call: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            call["sessionId"] = session
        os.write(self._out, json.dumps(call).encode() + b"\0")
        until = time.monotonic() + PATIENCE_S
        while True:
            told = self._next(until)
            if told.get("id") == self._number:
                if told.get("error", {}).get("message") == LEFT:
                    raise PageLeft
                assert "error" not in told, told
                return told["result"]
            self._note(told)

    def _next(self, until: float) -> Any:
        while b"\0" not in self._buffer:
            ready = select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0]
            assert ready, "the browser says nothing"
            read = os.read(self._in, 1 << 20)
            assert read, "the browser is gone"
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def _note(self, told: Any) -> None:
        method, parameters = told.get("method"), told.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"])[:2000])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            entry = parameters["entry"]
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(parameters["args"])[:2000])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    # -- what people do ----------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Go to a page."""
        self.ask("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """Wait until an expression is true; its value."""
        until = time.monotonic() + PATIENCE_S
        # A page that is not there yet has no element to ask.
        tried = f"(() => {{ try {{ return !!({script}) }} catch {{ return false }} }})()"
        while True:
            # One that is just being left has nothing to say.
            with contextlib.suppress(PageLeft):
                if value := self.evaluate(tried):
                    return value
            if time.monotonic() >= until:
                raise AssertionError(f"{script}\n{self.text()[:2000]}\n{self.complaints}")

    def text(self) -> str:
        """What stands on the page."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def press(self, key: str) -> None:
        """A key, as a person presses it."""
        text = {"text": key} if len(key) == 1 else {}
        names = {"Enter": ("Enter", 13), "Escape": ("Escape", 27), "Backspace": ("Backspace", 8)}
        code = {"windowsVirtualKeyCode": names[key][1]} if key in names else {}
        if key == "Enter":
            text = {"text": "\r"}
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **code)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def screenshot(self, path: Path) -> None:
        """Keep what is seen."""
        shot = self.ask("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))
