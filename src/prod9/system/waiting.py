"""How threads wait for each other on CPUs; to be set before torch is imported, and nothing here imports it."""

import os
from collections.abc import MutableMapping

from prod9.system.machine import is_busy

SPIN_COUNT = "30000"
"""Turns of a loop, about a millisecond, before a thread that waits at the end of a parallel region goes to sleep.

OpenMP's own number is ten times as large. On a machine that is busy with other work a thread then spins away the time
that its partner would need: on two cores beside six processes of another session, training the demo's networks falls
to 3% of its idle speed (autoencoder) and 6% (transformer), and with this number to 26% and 20%.
"""
SPIN_COUNT_BUSY = "0"
"""The same on a machine that is busy when the command starts: sleeping at once reaches 42% and 46% there.

Beside six processes of the same session, which Linux then gives three quarters of the cores, it reaches 12% and 14%
where OpenMP's own number reaches 2% and 3%. It costs a third of the speed on an idle machine.
"""
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Variables by which a user decides; one is enough."""


def limit_spinning(environ: MutableMapping[str, str] = os.environ, *, busy: bool | None = None) -> None:
    """Let OpenMP's threads spin for ``SPIN_COUNT`` turns, or not at all on a busy machine, unless the user has chosen.

    busy: asked of the system where it is None. The runtime that comes with torch on Linux (libgomp) reads the variable
    once, when torch is imported; others do not know it.
    """
    if not any(name in environ for name in CHOICES):
        environ["GOMP_SPINCOUNT"] = SPIN_COUNT_BUSY if (is_busy() if busy is None else busy) else SPIN_COUNT
