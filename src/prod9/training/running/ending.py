"""The error of a run that ended before its time: one message, from one process, with how to go on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from prod9.errors import Prod9Error, TrainingError
from prod9.models.run_folder import find_checkpoints
from prod9.system.stopping import Watch
from prod9.system.terminal import PlainConsole
from prod9.training.running.slurm import job_name, requeue
from prod9.training.running.stops import InterruptedTrainingError

_LOST = (
    "connection closed by peer", "connection reset by peer", "broken pipe", "gloo", "nccl", "timed out",
    "connection refused", "socket", "heartbeat",
)  # fmt: skip
"""Words in errors of the libraries below torch.distributed when another process is gone."""


def is_first_rank() -> bool:
    """Return whether this is the only process of a run, or the first of them."""
    return getattr(rank_zero_only, "rank", 0) in {0, None}


def say(message: str) -> None:
    """Print a line to the user, on the first process."""
    if is_first_rank():
        PlainConsole(stderr=True).print(message)


@contextmanager
def ended_with_a_hint(output_dir: Path, watch: Watch) -> Iterator[None]:
    """Turn whatever ends the block early into one error of the first process, with how to go on.

    A process that lost its connection to the others, or that stops because the first one does, prints nothing.
    """
    try:
        yield
    except InterruptedTrainingError as error:
        if not is_first_rank():
            raise SystemExit(error.exit_code) from error
        raise _requeued(error, watch) from error.__cause__
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning makes an exit of a KeyboardInterrupt.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if not is_first_rank():
            raise SystemExit(watch.exit_code) from error
        raise _requeued(_stopped_at_once(output_dir, watch), watch) from None
    except Exception as error:
        if not _is_lost_peer(error):
            _name_the_process(error)
            raise
        if not is_first_rank():
            raise SystemExit(1) from error
        raise TrainingError(
            f"Another process of this run ended early; its own message, if it printed one, gives the reason. "
            f"{_hint(output_dir, watch)}"
        ) from error


def _stopped_at_once(output_dir: Path, watch: Watch) -> InterruptedTrainingError:
    how = f"Stopped by {watch.name if watch.asked is not None else 'SIGINT'}"
    if watch.twice:
        how = "Stopped at once by a second Ctrl-C, without saving"
    return InterruptedTrainingError(f"{how}. {_hint(output_dir, watch)}", watch.exit_code)


def _hint(output_dir: Path, watch: Watch) -> str:
    last = next(iter(find_checkpoints(output_dir)), None)
    if last is None:
        return f"There is no checkpoint yet; what was cached or encoded is kept, and {watch.again} goes on from here."
    return f"The last checkpoint is {last}; {watch.again} goes on from there."


def _requeued(error: InterruptedTrainingError, watch: Watch) -> InterruptedTrainingError:
    """Put a SLURM job whose end was announced back into its queue, and add that to the message."""
    if not watch.wants_requeue or job_name() is None:
        return error
    problem = requeue()
    told = (
        f"Job {job_name()} is back in the queue, and goes on by itself."
        if problem is None
        else f"Job {job_name()} could not be put back into the queue ({problem})."
    )
    return InterruptedTrainingError(f"{error} {told}", error.exit_code)


def _is_lost_peer(error: Exception) -> bool:
    if isinstance(error, Prod9Error) or not _world_size() > 1:
        return False
    kinds = tuple(k for k in (getattr(dist, n, None) for n in ("DistBackendError", "DistNetworkError")) if k)
    text = str(error).lower()
    return isinstance(error, kinds) or (
        isinstance(error, RuntimeError) and any(word in text for word in _LOST)
    )


def _name_the_process(error: Exception) -> None:
    if not is_first_rank() and error.args and isinstance(error.args[0], str):
        rank = getattr(rank_zero_only, "rank", 0)
        error.args = (f"Process {rank} of {_world_size()}: {error.args[0]}", *error.args[1:])


def _world_size() -> int:
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1") or 1)
