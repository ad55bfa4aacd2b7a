"""How long-running work reports its progress."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total)."""
