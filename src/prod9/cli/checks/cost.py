"""How long a run takes and what it holds: measured where that takes seconds, else estimated, and which of both."""

import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from prod9.stages import STAGES
from prod9.system.wording import duration, plural

if TYPE_CHECKING:
    import torch

    from prod9.config.schema import RunConfig
    from prod9.planning.estimates import Autoencoder, Resources

BUDGET_S = 15.0
"""Seconds that measuring the steps of one configuration may take."""
GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run costs.

    Attributes:
        seconds_per_step: of training; None where nothing is known.
        steps: of the run.
        source: where the number is from, in words.
        memory_bytes: measured; None where it was not.
        factor: measured seconds over estimated ones; None where one is missing.
    """

    seconds_per_step: float | None
    steps: int
    source: str
    memory_bytes: int | None = None
    factor: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the cost as plain values."""
        if self.seconds_per_step is None:
            return {"source": self.source}
        memory = {} if self.memory_bytes is None else {"measured_gib": round(self.memory_bytes / GIB, 2)}
        return {
            "run": duration(self.seconds_per_step * self.steps),
            "seconds_per_step": float(f"{self.seconds_per_step:.3g}"),
            "steps": self.steps,
            "source": self.source,
            **memory,
        }


def cost_of(
    config: "RunConfig",
    needs: "Resources",
    autoencoder: "Autoencoder | None",
    *,
    device: "torch.device",
    fits: bool = True,
    measures: bool = True,
    work: float | None = None,
    factor: float | None = None,
) -> Cost:
    """Return what training ``config`` on ``device`` takes.

    A few steps are measured where they take no more than :data:`BUDGET_S`, by what the device's speed lets expect.

    Args:
        config: of any stage.
        needs: its resources.
        autoencoder: the model below a stage 2 or 3.
        device: where it is trained.
        fits: whether it fits there; what does not is not measured.
        measures: False for ``--no-calibrate``.
        work: multiply-adds of a step, where the caller knows them.
        factor: of an earlier :class:`Cost` on this machine, to correct an estimate by.
    """
    steps, work = config.training.max_steps, work_of(config, needs, autoencoder) if work is None else work
    expected = None if work is None else work / rates(str(device))[multiplies_matrices(config)]
    too_long = expected is not None and 3 * expected > BUDGET_S
    if fits and measures and not too_long:
        from prod9.training.running.calibration import can_measure, measure_steps

        if can_measure(config):
            found = measure_steps(config, autoencoder, device=device, budget_s=BUDGET_S)
            return Cost(
                seconds_per_step=found.seconds,
                steps=steps,
                source=f"measured in {plural(found.steps, 'step')} on {found.device}, without reading data and "
                "validating",
                memory_bytes=found.memory_bytes,
                factor=None if expected is None else found.seconds / expected,
            )
    if expected is None:
        return Cost(seconds_per_step=None, steps=steps, source=_unknown(fits))
    why = f" (a step is too slow to measure in {BUDGET_S:.0f} s)" if too_long and measures and fits else ""
    scaled = " and what the other stages took" if factor is not None else ""
    return Cost(
        seconds_per_step=expected * (factor or 1.0),
        steps=steps,
        source=f"estimated from the speed of one product on {device}{scaled}{why}",
    )


def _unknown(fits: bool) -> str:
    return (
        "not known before it trains: the first line after it has begun tells the time left"
        if fits
        else "not measured, since it does not fit"
    )


def multiplies_matrices(config: "RunConfig") -> bool:
    """Return whether a stage multiplies matrices, as transformers and what steers them do; all others convolve."""
    stage = STAGES[config.stage]
    return stage.family == "maskgit" and stage.number > 1 and not stage.corrects


def work_of(config: "RunConfig", needs: "Resources", autoencoder: "Autoencoder | None") -> float | None:
    """Return the multiply-adds of a step; None where they are not counted."""
    from prod9.planning.autoencoder import autoencoder_work
    from prod9.planning.flow import flow_work
    from prod9.planning.transformer import transformer_work

    if config.stage == "autoencoder" or config.stage == "maisi_vae":
        return autoencoder_work(config)
    if config.stage == "transformer":
        return transformer_work(config, needs)
    if config.stage == "maisi_diffusion" and autoencoder is not None and autoencoder.kind == "kl":
        return flow_work(config, needs.positions, autoencoder.latent_channels)
    return None


@cache
def rates(device: str) -> tuple[float, float]:
    """Return the multiply-adds per second of a convolution and of a matrix product, as in training on ``device``."""
    import torch
    from torch.nn import functional as F

    chosen = torch.device(device)
    half = torch.bfloat16 if chosen.type == "cuda" else torch.float32
    image = torch.ones(1, 32, 32, 32, 32, device=chosen, dtype=half)
    kernel = torch.ones(32, 32, 3, 3, 3, device=chosen, dtype=half)
    matrix = torch.ones(1024, 512, device=chosen, dtype=half)

    def rate(work: float, run: Any) -> float:
        best = float("inf")
        for _ in range(4):
            began = time.perf_counter()
            run()
            if chosen.type == "cuda":
                torch.cuda.synchronize(chosen)
            best = min(best, time.perf_counter() - began)
        return work / best

    convolution = rate(32**3 * 27 * 32 * 32, lambda: F.conv3d(image, kernel, padding=1))
    return convolution, rate(1024 * 512 * 1024, lambda: matrix @ matrix.T)
