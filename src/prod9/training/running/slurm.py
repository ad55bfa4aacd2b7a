"""Jobs of SLURM: which one this is, whether it was put back into the queue, and putting it back.

Lightning's own handling is switched off: it saves where no later start looks, and goes on running.
"""

import os
import re
import subprocess

_SECONDS = 60.0


def job_name() -> str | None:
    """Return the number of this process's job, of an array with the task's; None outside of SLURM."""
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}" if array else job
    return name if name and re.fullmatch(r"[0-9]+(_[0-9]+)?", name) else None


def was_requeued() -> bool:
    """Return whether SLURM starts this job anew, after a preemption or at its own request."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return job_name() is not None and count.isdigit() and int(count) > 0


def requeue() -> str | None:
    """Put this job back into the queue; return why that did not work, None if it did."""
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
