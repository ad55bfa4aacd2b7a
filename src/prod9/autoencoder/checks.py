"""Checks of arguments that all networks share; each raises ValueError with what was expected, and the remedy."""

import math
from collections.abc import Collection, Sequence, Sized

import torch
from torch import Tensor

from prod9.autoencoder.padding import padded_sides


def require_choice(name: str, value: str, known: Collection[str]) -> None:
    """Refuse a ``value`` of the option ``name`` that is none of ``known``."""
    if value not in known:
        raise ValueError(f"{name}: expected {' or '.join(known)}, got {value!r}; use one of these")


def require_finite(**values: float) -> None:
    """Refuse NaN and infinity: no comparison with a bound finds NaN, and all that is computed with it is NaN."""
    wrong = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise ValueError(
            f"{', '.join(values)}: expected finite numbers, got {', '.join(wrong)}; correct these"
        )


def require_one_each(condition: Sized, batch: int) -> None:
    """Refuse more or fewer conditions than samples, which torch might broadcast."""
    if len(condition) != batch:
        raise ValueError(f"condition: expected one per sample ({batch}), got {len(condition)}; pass as many")


def require_multiples(sides: Sequence[int], factor: int, what: str) -> None:
    """Refuse ``sides`` that are not positive multiples of ``factor``; ``what`` names them."""
    if any(side % factor or side < factor for side in sides):
        fit = tuple(max(factor, side) for side in padded_sides(sides, factor))
        raise ValueError(f"{what}: expected multiples of {factor}, got {tuple(sides)}; use {fit}")


def require_below(values: Tensor, count: int, what: str, *, least: int = 0) -> None:
    """Refuse numbers outside ``least`` to ``count - 1``. On CUDA without waiting for the result.

    An embedding with one more row, for "not known", would take the number ``count`` without complaint.

    Args:
        values: whole numbers.
        count: the first number that is too large.
        what: what the numbers are, for the message.
        least: the smallest number.
    """
    # ``count`` itself may not fit the type: 256 is 0 as uint8.
    fits = (values >= least) & (values <= count - 1)
    if values.device.type == "cuda":
        torch._assert_async(fits.all())  # waiting for the result here would stall every step
    elif values.device.type == "cpu" and not fits.all():
        raise ValueError(
            f"{what}: expected numbers from {least} to {count - 1}, got {values[~fits].unique().tolist()[:10]}; "
            "map them first, or train with more classes"
        )
