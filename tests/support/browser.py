"""A headless Chromium driven over a pipe by its DevTools protocol: enough to open a page, point, click and look."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT = 60.0  # seconds for one answer


def find() -> str | None:
    """The path of a browser; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page in a browser of its own; use as a context manager."""

    def __init__(self, browser: str, file: Path, width: int = 1280, height: int = 900, dark: bool = False):
        self.profile = tempfile.mkdtemp(prefix="browser-")
        to_browser, self.out = os.pipe()
        self.back, from_browser = os.pipe()
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (to_browser, from_browser)]
        command = [
            browser, "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-dev-shm-usage", "--disable-background-networking", f"--user-data-dir={self.profile}",
        ]  # fmt: skip
        quiet = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
        moves = [(os.POSIX_SPAWN_DUP2, end, fd) for end, fd in zip(ends, (3, 4), strict=True)]
        self.process = os.posix_spawn(browser, command, dict(os.environ), file_actions=[quiet, *moves], setsid=True)
        for fd in (to_browser, from_browser, *ends):
            os.close(fd)
        self.buffer, self.number, self.session = b"", 0, None
        self.errors: list[str] = []
        self.requests: list[str] = []
        try:
            self._open(file, width, height, dark)
        except BaseException:  # nobody else would end the browser
            self.__exit__()
            raise

    def _open(self, file: Path, width: int, height: int, dark: bool) -> None:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.resize(width, height)
        self.ask("Page.navigate", url=file.resolve().as_uri())
        self.until("document.readyState == 'complete'")

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def ask(self, method: str, **parameters):
        """The answer to one command of the protocol; events that come before it are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._event(answer)

    def _next(self) -> dict:
        while b"\0" not in self.buffer:
            if not select.select([self.back], [], [], TIMEOUT)[0]:
                raise TimeoutError(f"the browser said nothing for {TIMEOUT:g} s")
            piece = os.read(self.back, 1 << 20)
            if not piece:
                raise RuntimeError("the browser ended")
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _event(self, event: dict) -> None:
        name, found = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(found["exceptionDetails"]))
        elif name == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.errors.append(found["entry"]["text"])
        elif name == "Runtime.consoleAPICalled" and found["type"] == "error":
            self.errors.append(json.dumps(found["args"]))
        elif name == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])

    def do(self, script: str):
        """The value of a JavaScript expression."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + TIMEOUT
        while not self.do(script):
            if time.monotonic() > end:
                raise TimeoutError(script)
            time.sleep(0.02)

    def middle(self, selector: str, place: int = 0) -> tuple[float, float]:
        """Where an element's middle is on the screen, after scrolling there."""
        script = f"""(() => {{ const e = document.querySelectorAll({json.dumps(selector)})[{place}];
            e.scrollIntoView({{block: "center", behavior: "instant"}}); const b = e.getBoundingClientRect();
            return [b.x + b.width / 2, b.y + b.height / 2]; }})()"""
        return tuple(self.do(script))

    def point(self, selector: str, place: int = 0) -> None:
        x, y = self.middle(selector, place)
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str, place: int = 0) -> None:
        x, y = self.middle(selector, place)
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            codes = {"windowsVirtualKeyCode": {"Tab": 9, "Escape": 27, "Enter": 13, " ": 32}[key]}
            text = {"text": "\r" if key == "Enter" else key} if key in ("Enter", " ") and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, **codes, **text)

    def picture(self, path: Path, whole: bool = False) -> None:
        """Writes a screenshot, of the ``whole`` page or of what the window shows."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(found["data"]))

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_) -> None:
        os.close(self.out)
        os.close(self.back)
        os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        shutil.rmtree(self.profile, ignore_errors=True)
