"""SLURM: the name of this job, whether it was put back into the queue, and putting it back.

Lightning's own handling is switched off: it saves in a place that no later start reads, and goes on running.
"""

import os
import re
import subprocess

_SECONDS = 60.0


def job_name() -> str | None:
    """Return the number of this job, in an array with that of the task; None outside of SLURM."""
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}" if array else job
    return name if name and re.fullmatch(r"[0-9]+(_[0-9]+)?", name) else None


def was_requeued() -> bool:
    """Return whether SLURM has started this job again, after a preemption or at the job's own request."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return job_name() is not None and count.isdigit() and int(count) > 0


def requeue() -> str | None:
    """Put this job back into the queue; return the reason where that fails, else None."""
    job = job_name()
    if job is None:
        return "this is no job of SLURM"
    try:
        ended = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol: {error}"
    return None if ended.returncode == 0 else (ended.stderr or ended.stdout).strip() or "scontrol failed"
