"""One job at a time in a thread, with its progress and a way to stop it."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from prod9.app.work import Result
from prod9.errors import ConfigError, Prod9Error
from prod9.system.progress import Share

State = Literal["running", "done", "failed", "cancelled"]


class _Cancelled(Exception):  # noqa: N818 (no error)
    """The job was asked to stop."""


@dataclass
class Job:
    """A job and how far it is.

    Attributes:
        title: what it makes.
        id: names it in addresses.
        state: where it is.
        share: done, 0 to 1.
        message: what went wrong, if anything did.
        results: what it made.
        seconds: it took, or takes so far.
    """

    title: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: State = "running"
    share: float = 0.0
    message: str = ""
    results: list[Result] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def seconds(self) -> float:
        """Return how long it took, or takes so far."""
        return (self.ended or time.monotonic()) - self.began

    def report(self, share: float) -> None:
        """Note the share done; stop here if that was asked for."""
        if self.stop.is_set():
            raise _Cancelled
        self.share = max(self.share, min(1.0, share))


class Runner:
    """Runs jobs, one at a time; finished ones stay listed."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, title: str, make: Callable[[Job, Share], list[Result]]) -> Job:
        """Run ``make`` in a thread; it is called with the job and its report. ConfigError while another job runs."""
        with self._lock:
            if any(job.state == "running" for job in self.jobs.values()):
                raise ConfigError("job: expected one at a time, got another; wait for it, or cancel it.")
            job = Job(title)
            self.jobs[job.id] = job
        threading.Thread(target=self._run, args=(job, make), name="prod9-app", daemon=True).start()
        return job

    def _run(self, job: Job, make: Callable[[Job, Share], list[Result]]) -> None:
        state: State = "failed"
        try:
            job.results = make(job, job.report)
            job.share, state = 1.0, "done"
        except _Cancelled:
            state = "cancelled"
        except Prod9Error as error:
            job.message = str(error)
        except Exception as error:  # the page has to say what happened, whatever it is
            job.message = f"{type(error).__name__}: {error}; this is a fault of prod9, not of your input."
        job.ended, job.state = time.monotonic(), state
