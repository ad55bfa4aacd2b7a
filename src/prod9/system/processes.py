"""How processes that compute are started: without the threads and devices of the caller, and quickly."""

import sys
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, SpawnContext


def clean_context(*modules: str) -> ForkServerContext | SpawnContext:
    """Return a context whose processes share no thread, lock or device with the caller.

    On Linux, they are forked from a server that imports ``modules`` once, so that a process starts in milliseconds:
    importing torch and MONAI takes about ten seconds of a processor. Elsewhere each process imports for itself. The
    first call decides what the server imports; it lives as long as the caller and holds nothing but code. Not for
    processes that use CUDA: one of the modules may have looked for GPUs.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context
