"""What a drawn mask is asked for: size and place of its lesion, from a training lesion or from a user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prod9.data.label_covariates import DIAMETER, SIDE, diameter_of, mirrored
from prod9.errors import ConfigError

Side = Literal["left", "right"]
Bounds = Mapping[str, tuple[float, float]]
_PLACE_SD = 0.03
"""Of the shift of a lesion's centre, as a share of the brain's box: 4 mm, so that no place is asked for twice."""
_SIZE_SD = 0.08
"""Of the logarithm of the factor of a lesion's diameter: a quarter of its volume, likewise."""
_ALIKE = 0.1
"""Share of the training lesions, those nearest in size, whose places are drawn for a volume that a user asks for."""
_FEWEST_ALIKE = 5
_NEAR_SIZE, _NEAR_PLACE = 0.14, 0.1
"""Of the logarithm of the diameter, and as a share of the brain's box: nearer lesions are as asked."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a user asks of all masks. volume_ml: of the lesion. side: of its centre. None: as in training."""

    volume_ml: float | None = None
    side: Side | None = None

    def check(self, names: Sequence[str], bounds: Bounds) -> None:
        """Refuse (ConfigError) what a model with the covariates ``names`` cannot do, and sizes that it never saw."""
        for option, given, name in (("--volume", self.volume_ml, DIAMETER), ("--side", self.side, SIDE)):
            if given is not None and name not in names:
                raise ConfigError(
                    f"{option}: expected a model that was trained with covariates.numbers.{name}, got one without; "
                    "leave it out, or train with it."
                )
        if self.volume_ml is None:
            return
        low, high = bounds[DIAMETER]
        if not low <= diameter_of(self.volume_ml) <= high:
            raise ConfigError(
                f"--volume: expected a diameter of {low:g} to {high:g} mm as a ball, got {self.volume_ml:g} ml, "
                f"which has {diameter_of(self.volume_ml):.0f} mm; choose another."
            )


def draw_values(
    lesions: Sequence[Mapping[str, float]],
    wish: Wish,
    bounds: Bounds,
    rng: np.random.Generator,
    *,
    turn: int,
    mirrors: bool,
) -> dict[str, float]:
    """Return size and place of a lesion: of a training lesion, shifted and scaled a little.

    Each training lesion has its turn once before any has it again, in an order without pattern, so that sizes and
    places of few masks are not a matter of luck. What ``wish`` names takes the place of the training lesion's; for a
    volume, the training lesion is one of the tenth that are nearest in size. Values stay within ``bounds``. Empty
    where nothing is known of training lesions.

    Args:
        lesions: what was measured of the training patients.
        wish: of the user.
        bounds: of each value, as in training.
        rng: where numbers come from.
        turn: number of the training lesion in that order; the next number is another one.
        mirrors: whether the model learnt mirror images, too.

    Raises:
        ConfigError: for a side on which no training lesion lies, for a model without mirror images.
    """
    known = [one for one in lesions if one.get(DIAMETER, 0.0) > 0]
    if wish.side is not None and not mirrors:
        known = [one for one in known if _side(one) == wish.side]
        if not known:
            raise ConfigError(
                f"--side: expected a side on which training lesions lie, got {wish.side}; leave it out."
            )
    if wish.volume_ml is not None:
        asked = diameter_of(wish.volume_ml)
        count = max(_FEWEST_ALIKE, round(_ALIKE * len(known)))
        known = sorted(known, key=lambda one: abs(np.log(one[DIAMETER] / asked)))[:count]
    if not known:
        return {} if wish.volume_ml is None else {DIAMETER: diameter_of(wish.volume_ml)}
    chosen = known[int(_in_order(len(known))[turn % len(known)])]
    flip = bool(rng.random() < 0.5)
    if mirrors and (flip if wish.side is None else _side(chosen) != wish.side):
        chosen = mirrored(chosen)
    values = {
        name: value * float(np.exp(rng.normal(0, _SIZE_SD)))
        if name == DIAMETER
        else value + rng.normal(0, _PLACE_SD)
        for name, value in chosen.items()
    }
    if wish.side is not None:
        values[SIDE] = min(values[SIDE], 0.5) if wish.side == "left" else max(values[SIDE], 0.5)
    if wish.volume_ml is not None:
        values[DIAMETER] = diameter_of(wish.volume_ml)
    return {name: float(np.clip(value, *bounds[name])) for name, value in values.items() if name in bounds}


def gap_of(found: Mapping[str, float], asked: Mapping[str, float]) -> float:
    """Return how far a lesion is from what was asked: 1 at a diameter of 15% more, or a tenth of the brain's box away.

    Args:
        found: size and place of the lesion.
        asked: those that it was drawn for; what is not named does not count.
    """
    gaps = [
        abs(float(np.log(found[name] / max(value, 1e-6)))) / _NEAR_SIZE
        if name == DIAMETER
        else abs(found[name] - value) / _NEAR_PLACE
        for name, value in asked.items()
    ]
    return max(gaps, default=0.0)


def _in_order(count: int) -> np.ndarray:
    """Return the numbers below ``count``, shuffled always alike: a mask depends on nothing but its own number."""
    return np.random.default_rng(count).permutation(count)


def _side(lesion: Mapping[str, float]) -> Side:
    return "left" if lesion[SIDE] < 0.5 else "right"
