"""Chromium driven as a user drives it: clicks, choices and files, over the pipe of its DevTools protocol."""

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.evaluation.report.test_browser import CHROMIUM, SOFTWARE_WEBGL

_END = b"\0"
"""What ends a message in the pipe."""


class Page:
    """A page of a browser that runs."""

    def __init__(self, send: Callable[[bytes], Any], receive: Callable[[], bytes]) -> None:
        self._send, self._receive, self._rest, self._number = send, receive, b"", 0
        self._session: dict[str, str] = {}
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {
            "sessionId": self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        }
        self.said: list[str] = []
        """What the page wrote to its console, and its errors."""
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self._call(f"{domain}.enable")

    def open(self, address: str) -> None:
        """Go to ``address`` and wait until the page is ready."""
        self._call("Page.navigate", url=address)
        self.wait("document.body && document.body.dataset.ready === 'true'")

    def value(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str, *, seconds: float = 120) -> None:
        """Wait until an expression holds."""
        until = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < until, f"{script} never held; the page shows: {self.text()}"
            time.sleep(0.1)

    def text(self) -> str:
        """Return what can be read on the page."""
        return self.value("document.body ? document.body.innerText : ''") or ""

    def click(self, selector: str) -> None:
        """Press the mouse on an element, which has to be visible."""
        x, y = self.value(
            f"(() => {{ const one = document.querySelector('{selector}'); one.scrollIntoView({{block: 'center'}});"
            " const box = one.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        found = f"document.elementFromPoint({x}, {y})"
        assert self.value(f"{found} && {found}.closest('{selector}') !== null"), (
            f"{selector} cannot be clicked"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select."""
        options = self.value(f"[...document.querySelector('{selector}').options].map((one) => one.value)")
        assert value in options, f"{selector} offers {options}"
        self.value(
            f"(() => {{ const one = document.querySelector('{selector}'); one.value = {json.dumps(value)};"
            " one.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def give(self, selector: str, file: Path) -> None:
        """Choose a file and wait until the page has read it."""
        assert self.value(f"document.querySelector('{selector}').checkVisibility()"), f"{selector} is hidden"
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)
        self.wait(f"/voxels of/.test(document.querySelector('[data-of={selector[1:]}]').textContent)")

    def screenshot(self, file: Path) -> None:
        """Write a PNG of what is in the window."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **given: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": given, **self._session}
        self._send(json.dumps(message).encode() + _END)
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if answer.get("method") in (
                "Runtime.consoleAPICalled",
                "Runtime.exceptionThrown",
                "Log.entryAdded",
            ):
                self.said.append(json.dumps(answer["params"]))

    def _next(self) -> dict[str, Any]:
        while _END not in self._rest:
            got = self._receive()
            assert got, "Chromium has ended"
            self._rest += got
        first, self._rest = self._rest.split(_END, 1)
        return json.loads(first)


@contextmanager
def browser(folder: Path, *, size: str = "1360,1000") -> Iterator[Page]:
    """Yield a page of a headless Chromium that reaches this computer alone; ``folder`` holds its profile."""
    to_read, send = _pipe()
    receive, to_write = _pipe()
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *SOFTWARE_WEBGL,
        f"--user-data-dir={folder / 'user'}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--window-size={size}", "--remote-debugging-pipe",
    ]  # fmt: skip
    # Chromium reads its orders from file 3 and answers into file 4.
    script = f'exec "$@" 3<&{to_read} 4>&{to_write}'
    with subprocess.Popen(
        ["bash", "-c", script, "chromium", *command], pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL
    ) as process:
        os.close(to_read)
        os.close(to_write)
        try:
            yield Page(lambda message: os.write(send, message), lambda: os.read(receive, 1 << 20))
        finally:
            process.terminate()
            os.close(send)
            os.close(receive)


def _pipe() -> tuple[int, int]:
    """Return the ends of a pipe, neither of them one of the files that Chromium takes for itself."""
    import fcntl  # not on Windows, where the tests that come here are skipped

    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
