"""How OpenMP's threads wait for each other; set before torch is imported, which this module does not do."""

import os
from collections.abc import MutableMapping

from prod9.system.machine import is_busy

SPIN_COUNT = "30000"
"""Turns of a loop, about a millisecond, after which a thread that waits at the end of a parallel region sleeps.

OpenMP's default is ten times as large. On a busy machine, a spinning thread takes the time that the other threads
need: on two cores beside six processes of another session, training the demo's networks falls to 3% of its idle speed
(autoencoder) and 6% (transformer); with this number, to 26% and 20%.
"""
SPIN_COUNT_BUSY = "0"
"""The same for a machine that is busy when the command starts: sleeping at once reaches 42% and 46% there.

Beside six processes of the same session, which Linux then gives three quarters of the cores, it reaches 12% and 14%,
and OpenMP's default 2% and 3%. It costs a third of the speed on an idle machine.
"""
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Variables by which users choose this themselves; one is enough."""


def limit_spinning(environ: MutableMapping[str, str] = os.environ, *, busy: bool | None = None) -> None:
    """Let OpenMP's threads spin for ``SPIN_COUNT`` turns, or not at all on a busy machine, unless the user has chosen.

    busy: whether the machine is; measured if None. The runtime that comes with torch on Linux (libgomp) reads the
    variable once, when torch is imported; other runtimes ignore it.
    """
    if not any(name in environ for name in CHOICES):
        environ["GOMP_SPINCOUNT"] = SPIN_COUNT_BUSY if (is_busy() if busy is None else busy) else SPIN_COUNT
