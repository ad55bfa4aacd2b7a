"""How long-running work reports its progress."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total)."""
FineProgress = Callable[[float, int], None]
"""Called with (done, total), where ``done`` has fractions: a piece of the work takes long."""
Share = Callable[[float], None]
"""Called with the share of the work that is done, from 0 to 1."""


def within(report: Callable[[float], None] | None, start: float, size: float) -> Share:
    """Return what reports a part of some work: its share ``s`` is passed on as ``start + s * size``.

    Without ``report`` the result does nothing.
    """

    def part(share: float) -> None:
        if report is not None:
            report(start + share * size)

    return part
