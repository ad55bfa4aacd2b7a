"""Learning rate as a pure function of the step: nothing has to be stored or restored."""

import math

from prod9.config.schema import LrScheduleConfig


def learning_rate_factor(schedule: LrScheduleConfig, step: int, max_steps: int) -> float:
    """Return the learning rate of training batch ``step`` (from 0) over the peak rate, in (0, 1].

    Linear warm-up that reaches 1 at batch ``warmup_steps - 1``, a plateau of ``flat_fraction`` of all steps,
    then the decay of ``kind`` to ``final_fraction`` at the last batch.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    start = schedule.warmup_steps + schedule.flat_fraction * max_steps
    progress = min(1.0, max(0.0, (step - start) / max(1.0, max_steps - 1 - start)))
    remaining = 1.0 - progress if schedule.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * remaining
