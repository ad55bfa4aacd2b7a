"""Requests to stop: signals of terminals, schedulers and users, and a time limit. Standard library only.

``watching`` handles the signals. By default a signal ends the block at once with :class:`StopNow`, a
KeyboardInterrupt: code that saves its work at a Ctrl-C saves it at the other signals too. While ``gentle`` is set, a
signal is only noted, and the work looks at ``Watch.asked`` after each step.
"""

import _thread
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
"""Signals that ask a process to stop: Ctrl-C, schedulers, a closed terminal, users of clusters."""
TIME_LIMIT = "the time limit"
_ALARM = getattr(signal, "SIGUSR1", signal.SIGINT)


class StopNow(KeyboardInterrupt):
    """The process was asked to stop while there is no step to finish."""


class Watch:
    """The requests to stop so far.

    Attributes:
        say: prints a line for the user.
        asked: the number of the first signal, None without one.
        gentle: only note signals, and stop at once only at a second Ctrl-C.
        twice: whether there was a second Ctrl-C.
        timed_out: whether the time limit was reached.
        again: what goes on from here, in messages.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self.say = say
        self.asked: int | None = None
        self.gentle = False
        self.twice = False
        self.timed_out = False
        self.again = "the same command with --resume"
        self._owner = os.getpid()

    @property
    def name(self) -> str:
        """The origin of the request, for messages."""
        if self.timed_out:
            return TIME_LIMIT
        return "nothing" if self.asked is None else signal.Signals(self.asked).name

    @property
    def exit_code(self) -> int:
        """The exit code of the shell for that signal; 130, as for Ctrl-C, for the time limit."""
        return 128 + (signal.SIGINT if self.asked is None or self.timed_out else self.asked)

    @property
    def wants_requeue(self) -> bool:
        """Whether schedulers announce the end of a job by this signal."""
        users = {getattr(signal, name, None) for name in ("SIGUSR1", "SIGUSR2")}
        return self.asked in users and not self.timed_out

    def note(self, signum: int, frame: FrameType | None = None) -> None:
        """Handle a signal; raises StopNow if there is no step to finish, and at a second Ctrl-C."""
        if os.getpid() != self._owner:
            return _as_before(signum)
        again = self.asked is not None
        if not again:
            self.asked = signum
        if again and signum != signal.SIGINT:
            return None
        if again or not self.gentle:
            self.twice = again
            raise StopNow
        with suppress(RuntimeError):  # the signal came in the middle of a line being printed
            self.say(
                "Stopping at the end of this step and saving; Ctrl-C again stops at once, without saving."
            )
        return None

    def time_out(self) -> None:
        """Ask to stop because the time limit is reached; called from the thread of a timer."""
        if self.asked is None:
            self.timed_out = True
            self.wake()

    @staticmethod
    def wake() -> None:
        """Let the main thread handle a signal now, even while it waits for the system."""
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, _ALARM)
        else:
            _thread.interrupt_main()


@contextmanager
def watching(
    say: Callable[[str], None] = lambda _: None, *, max_seconds: float | None = None
) -> Iterator[Watch]:
    """Handle signals, and the limit ``max_seconds``, within the block; restore the former handlers afterwards.

    SIGHUP stays ignored if it was (``nohup``). Only the main thread can handle signals; in another one the block runs
    without this.
    """
    watch = Watch(say)
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    before: dict[int, Any] = {}
    timer = None if max_seconds is None else threading.Timer(max(0.0, max_seconds), watch.time_out)
    try:
        for signum in SIGNALS:
            if _is_ours_to_take(signum):
                before[signum] = signal.signal(signum, watch.note)
        if timer is not None:
            timer.daemon = True
            timer.start()
        yield watch
    finally:
        if timer is not None:
            timer.cancel()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def take_back(watch: Watch) -> None:
    """Make ``watch`` handle the signals again after a library has installed its own handlers."""
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            if _is_ours_to_take(signum):
                signal.signal(signum, watch.note)


def _is_ours_to_take(signum: int) -> bool:
    handler = signal.getsignal(signum)
    is_hang_up = signum == getattr(signal, "SIGHUP", None)
    return handler is not None and not (is_hang_up and handler is signal.SIG_IGN)


def _as_before(signum: int) -> None:
    """Handle a signal in a forked process: ignore it, except that SIGTERM ends this process."""
    if signum == signal.SIGTERM:
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
