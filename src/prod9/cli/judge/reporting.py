"""Progress of long work in several parts: bars on a terminal, elsewhere a plain line every few seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prod9.cli import shared
from prod9.evaluation.settings import Report

SECONDS = 10.0
"""Shortest time between two lines of one part; its last line always comes."""


@contextmanager
def reporting() -> Iterator[Report]:
    """Yield a function that shows on stderr how far each part is."""
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
    """Prints lines for a log: what is done, the time per item, and the time left."""

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._began: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print a line if the last one is old enough, or if the part is done."""
        now = time.monotonic()
        # A new part began when the last report of any part came.
        began = self._began.setdefault(what, self._last)
        said, self._last = self._said.get(what, began), now
        if done < total and now - said < self.seconds:
            return
        self._said[what] = now
        each = (now - began) / max(done, 1)
        left = f", about {each * (total - done):.0f} s left" if done < total else ""
        shared.messages.print(f"{what}: {done} of {total}, {each:.1f} s each{left}")
