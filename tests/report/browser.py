# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Chromium, driven by chromedriver: WebDriver's commands over HTTP, by the standard library."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key of an element's number. W3C WebDriver, section 12.2."""
KEYS = {
    "Tab": "\ue004",
    "Enter": "\ue007",
    "Escape": "\ue00c",
    "Home": "\ue011",
    "ArrowLeft": "\ue012",
    "ArrowRight": "\ue014",
    "ArrowDown": "\ue015",
}
"""Section 17.4.2."""


def missing() -> str:
    """What is not there of what it takes; empty where all is."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    found = {"chromedriver": shutil.which("chromedriver"), "chromium": chromium}
    return ", ".join(name for name, path in found.items() if path is None)


class Browser:
    """One session. what a page logs as an error fails the test that asks for it."""

    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options = {
            "binary": shutil.which("chromium") or shutil.which("google-chrome"),
            "args": arguments,
        }
        asked = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._send("POST", "/session", {"capabilities": {"alwaysMatch": asked}})
        self.session = f"/session/{made['sessionId']}"

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = Request(self.root + path, data, {"Content-Type": "application/json"})
        request.method = method
        try:
            with urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def do(self, command: str, body: Any = None, method: str = "POST") -> Any:
        """One command of the session."""
        return self._send(method, f"{self.session}/{command}", body)

    def close(self) -> None:
        """End the session, and the browser with it."""
        self._send("DELETE", self.session)

    def devtools(self, command: str, **params: Any) -> Any:
        """One command of Chrome's own protocol."""
        return self.do("goog/cdp/execute", {"cmd": command, "params": params})

    def open(self, file: Path, width: int = 900, medium: str = "", **media: str) -> None:
        """Show a file, in a window of a width, as for a medium, under features such as
        prefers-color-scheme."""
        features = [
            {"name": name.replace("_", "-"), "value": value} for name, value in media.items()
        ]
        self.devtools("Emulation.setEmulatedMedia", media=medium, features=features)
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=800, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.do("url", {"url": file.as_uri()})

    def run(self, script: str, *args: Any) -> Any:
        """What a script of the test's returns."""
        return self.do("execute/sync", {"script": script, "args": list(args)})

    def find(self, selector: str) -> dict[str, str]:
        """The first element of a selector."""
        found: dict[str, str] = self.do("element", {"using": "css selector", "value": selector})
        return found

    def click(self, selector: str) -> None:
        """Click where a person would."""
        self.do(f"element/{self.find(selector)[ELEMENT]}/click")

    def point(self, selector: str, x: float, y: float, *, click: bool = False) -> None:
        """Move the pointer to a place of an element, as shares of its width and height, and click."""
        box = self.run(
            "const e=document.querySelector(arguments[0]);e.scrollIntoView({block:'center'});"
            "const b=e.getBoundingClientRect();return [b.x,b.y,b.width,b.height]",
            selector,
        )
        place = {"x": round(box[0] + x * box[2]), "y": round(box[1] + y * box[3])}
        moves = [{"type": "pointerMove", "duration": 0, **place}]
        if click:
            moves += [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")]
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}}
        self.do("actions", {"actions": [{**mouse, "actions": moves}]})

    def press(self, *keys: str) -> None:
        """Press keys one after another, on what has the focus."""
        moves = [
            {"type": kind, "value": KEYS.get(key, key)}
            for key in keys
            for kind in ("keyDown", "keyUp")
        ]
        self.do("actions", {"actions": [{"type": "key", "id": "keys", "actions": moves}]})

    def text(self, selector: str) -> str:
        """What is written in an element, shown or not."""
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def errors(self) -> list[str]:
        """What the page, or its policy, complained of."""
        return [each["message"] for each in self.do("se/log", {"type": "browser"})]


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser, and its end."""
    driver = subprocess.Popen(
        [shutil.which("chromedriver") or "chromedriver", "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert driver.stdout is not None
        port = 0
        for line in driver.stdout:
            if "successfully on port" in line:
                port = int(line.rstrip().rstrip(".").rpartition(" ")[2])
                break
        made = _session(port)
        try:
            yield made
        finally:
            made.close()
    finally:
        driver.terminate()
        driver.wait()


def _session(port: int) -> Browser:
    for _ in range(20):
        try:
            return Browser(port)
        except URLError:
            time.sleep(0.2)
    raise AssertionError("chromedriver does not answer")
