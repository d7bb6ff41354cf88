"""A headless Chromium, driven over a pipe by its DevTools protocol: what a page asks for, says, and looks like."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = 60
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """Return the program, or None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path is not None), None)


class Browser:
    """One page in a browser without a window.

    Example:
        with Browser() as browser:
            browser.open("file:///tmp/report.html", width=375)
            browser.screenshot("/tmp/report.png")
    """

    def __init__(self, program: str | None = None) -> None:
        program = program or find_browser()
        if program is None:
            raise FileNotFoundError(f"There is no browser; one of {', '.join(NAMES)} was expected on the PATH.")
        self.program = program
        self.events: list[dict[str, Any]] = []
        self._number = 0
        self._buffer = b""

    def __enter__(self) -> Browser:
        self._profile = tempfile.mkdtemp(prefix="browser-")
        read_there, self._write = os.pipe()
        self._read, write_there = os.pipe()
        flags = [
            "--headless=new",
            "--no-sandbox",  # of root, in a container
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            f"--user-data-dir={self._profile}",
            "--remote-debugging-pipe",
        ]
        # The browser reads from 3 and writes to 4, whatever numbers the pipes have here.
        shell = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", self.program, *flags, "about:blank"],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        os.set_blocking(self._read, False)
        target = self.call("Target.createTarget", url="about:blank", session=None)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True, session=None)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, session: str | None = "", **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda found: found.get("id") == self._number, method)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def wait_for(self, event: str) -> None:
        """Wait for an event that has not come since the last :meth:`open`."""
        if not any(found.get("method") == event for found in self.events):
            self._until(lambda found: found.get("method") == event, event)

    def _until(self, wanted: Any, what: str) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            while b"\0" in self._buffer:
                line, self._buffer = self._buffer.split(b"\0", 1)
                found: dict[str, Any] = json.loads(line)
                if "method" in found:
                    self.events.append(found)
                if wanted(found):
                    return found
            try:
                more = os.read(self._read, 1 << 20)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            if not more:
                raise RuntimeError(f"The browser ended while it was asked for {what}.")
            self._buffer += more
        raise TimeoutError(f"The browser did not answer to {what} in {SECONDS} s.")

    # -- what a test asks ---------------------------------------------------------------------------------------------

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False, scale: float = 1.0) -> None:
        """Open a page in a window of some width, on a light or dark screen."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media="", features=features)
        self.call("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """Return what a JavaScript expression is on the page; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        """Return what the page asked for since it was opened."""
        asked = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in asked]

    def complaints(self) -> list[str]:
        """Return errors and warnings of the console."""
        found = []
        for event in self.events:
            values = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(values["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
                found.append(str(values["args"]))
            elif event["method"] == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
                found.append(values["entry"]["text"])
        return found

    def screenshot(self, path: str | Path, whole: bool = True) -> None:
        """Write a PNG of the whole page, or of what the window shows."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: str | Path) -> None:
        """Print the page."""
        printed = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        Path(path).write_bytes(base64.b64decode(printed["data"]))
