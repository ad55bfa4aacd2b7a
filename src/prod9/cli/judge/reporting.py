"""Progress of long work in several parts: bars on a terminal, plain lines now and then anywhere else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prod9.cli import shared

Report = Callable[[str, int, int], None]
"""Called with (what is under way, done, total)."""

SECONDS = 10.0
"""At least so long between two lines of the same work, but for its last one."""


@contextmanager
def reporting() -> Iterator[Report]:
    """Yield what shows how far each kind of work is, on stderr."""
    if not shared.messages.is_terminal:
        yield PlainLines()
        return
    with shared.progress() as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield report


class PlainLines:
    """Prints a line for a log: how far, how long for each, how long still."""

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._began: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print a line if the last one is old enough, or if this is the end."""
        now = time.monotonic()
        # Work that was not heard of before began when the last report came.
        began = self._began.setdefault(what, self._last)
        said, self._last = self._said.get(what, began), now
        if done < total and now - said < self.seconds:
            return
        self._said[what] = now
        each = (now - began) / max(done, 1)
        left = f", about {each * (total - done):.0f} s left" if done < total else ""
        shared.messages.print(f"{what}: {done} of {total}, {each:.1f} s each{left}")
