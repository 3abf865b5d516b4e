"""A headless Chromium driven over a pipe by its DevTools protocol: enough to open a page, point, click and look."""

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
KEYS = {"Tab": 9, "Escape": 27, "Enter": 13}
MIDDLE = """(() => {{ const e = document.querySelectorAll({})[{}];
    e.scrollIntoView({{block: "center", behavior: "instant"}}); const b = e.getBoundingClientRect();
    return [b.x + b.width / 2, b.y + b.height / 2]; }})()"""  # on the screen, after scrolling there


def find() -> str | None:
    """The path of a browser; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page in a browser of its own; use as a context manager."""

    def __init__(self, browser: str, file: Path):
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
        self.buffer, self.number, self.session = b"", 0, {}
        self.errors: list[str] = []
        self.requests: list[str] = []
        try:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            self.session = {"sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.ask(f"{domain}.enable")
            self.resize(1280, 900)
            self.ask("Page.navigate", url=file.resolve().as_uri())
            self.until("document.readyState == 'complete'")
        except BaseException:  # nobody else would end the browser
            self.__exit__()
            raise

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def ask(self, method: str, **parameters):
        """The answer to one command of the protocol; events that come before it are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self._event(answer.get("method"), answer.get("params", {}))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self) -> dict:
        while b"\0" not in self.buffer:
            if not select.select([self.back], [], [], TIMEOUT)[0]:
                raise TimeoutError(f"the browser said nothing for {TIMEOUT:g} s")
            if not (piece := os.read(self.back, 1 << 20)):
                raise RuntimeError("the browser ended")
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _event(self, name: str | None, found: dict) -> None:
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

    def point(self, selector: str, place: int = 0, kind: str = "mouseMoved", **more) -> None:
        x, y = self.do(MIDDLE.format(json.dumps(selector), place))
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, selector: str, place: int = 0) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.point(selector, place, kind, button="left", clickCount=1)

    def press(self, key: str) -> None:
        for kind, text in (("keyDown", {"text": "\r"} if key == "Enter" else {}), ("keyUp", {})):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=KEYS[key], **text)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_) -> None:
        os.close(self.out)
        os.close(self.back)
        os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        shutil.rmtree(self.profile, ignore_errors=True)
