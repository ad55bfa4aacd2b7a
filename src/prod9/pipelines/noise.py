"""The noise of scans, for volumes that decoding has left without it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prod9.errors import CheckpointError
from prod9.measures.noise import noise_level
from prod9.pipelines.placement import DARKEST, head_of

SCANS = "scans"
"""The level of noise that stands for: drawn from those of the training scans."""


class ScanNoise:
    """Adds white noise inside of the head until a volume has the level of a scan.

    An autoencoder keeps a quarter of the noise of its scans, and a volume without noise is easily told from them. The
    noise that a volume has counts: levels add up as squares.

    Args:
        levels: quantiles of the levels of noise of the training scans, by name of the class; see ``noise_level``.
        noise: level of the results, in intensities of 0 to 1; None draws one of ``levels`` for each volume.

    Example:
        >>> import numpy as np
        >>> from prod9.pipelines.noise import ScanNoise
        >>> volume = np.pad(np.full((24, 24, 24), 0.5, np.float32), 2)
        >>> noisy = ScanNoise(levels={}, noise=0.03).sharpen(volume, "T1", seed=0)
        >>> round(float(noisy[noisy > 0].std()), 2), float(noisy[0, 0, 0])
        (0.03, 0.0)
    """

    sha256 = ""
    """It has no weights."""

    def __init__(self, *, levels: Mapping[str, Sequence[float]], noise: float | None = None) -> None:
        self.levels = {name: np.asarray(values, dtype=np.float64) for name, values in levels.items()}
        self.noise = noise

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its results, as plain values."""
        return {"noise": SCANS if self.noise is None else self.noise}

    def sharpen(
        self, soft: np.ndarray, label: str, *, seed: int, head: np.ndarray | None = None
    ) -> np.ndarray:
        """Return ``soft`` with noise, float32 ``[H W D]`` in [0, 1], 0 outside of the head.

        Args:
            soft: float32 ``[H W D]`` in [0, 1].
            label: name of its class; one without known levels stays as it is, unless a level was asked for.
            seed: of all that is drawn.
            head: bool ``[H W D]``; by default what ``head_of`` finds in ``soft``.
        """
        rng = np.random.default_rng(seed)
        # Drawn also when a level was asked for, so that volumes of all levels share their noise.
        level = draw_level(self.levels.get(label, np.zeros(1)), rng.random())
        level = level if self.noise is None else self.noise
        inside = head_of(soft) if head is None else head
        own = noise_level(torch.from_numpy(soft), torch.from_numpy(inside)).nan_to_num(0.0).item()
        missing = math.sqrt(max(level**2 - own**2, 0.0))
        drawn = missing * rng.standard_normal(soft.shape, dtype=np.float32)
        return np.where(inside, np.clip(soft + drawn, DARKEST, 1.0), np.float32(0.0)).astype(np.float32)


def draw_level(quantiles: Sequence[float] | np.ndarray, share: float) -> float:
    """Return the level below which ``share`` (0 to 1) of the levels are that ``quantiles`` describe."""
    return float(np.interp(share, np.linspace(0, 1, len(quantiles)), quantiles))


def recorded_levels(path: Path, data: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the levels of noise in the ``data`` of the header of ``path``; CheckpointError where they are none."""
    levels = data.get("noise")
    if (
        not isinstance(levels, dict)
        or not levels
        or not all(_are_levels(values) for values in levels.values())
    ):
        raise CheckpointError(
            f"{path}: expected levels of noise in data.noise of the header, got {str(levels)[:60]}; use another "
            "checkpoint of the run, or copy the file again."
        )
    return levels


def _are_levels(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) > 0
        and all(isinstance(v, int | float) and math.isfinite(v) and v >= 0 for v in values)
    )
