"""The memory that a training step keeps, and helpers that the estimates of all stages share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prod9.config.schema import RunConfig

GIB = 1024**3
Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What follows from the configuration of a stage, parameters aside.

    Attributes:
        latent_grid: positions of the latent along each axis.
        positions: of the sequence or latent that the network of a later stage works on; 0 if it works on volumes.
        kept_bytes: activations that a step keeps for the backward pass.
        passing_bytes: gradients that exist beside them at the widest layer.
        store_bytes_per_volume: of one volume in the store of tokens or latents, mirrored copy included.
    """

    latent_grid: tuple[int, int, int]
    kept_bytes: float
    passing_bytes: float = 0.0
    positions: int = 0
    store_bytes_per_volume: int = 0


def latent_grid(grid: Sequence[int], factor: int) -> tuple[int, int, int]:
    """Return the latent grid of ``grid`` voxels, each side rounded up to a whole position."""
    h, w, d = (-(-side // factor) for side in grid)
    return h, w, d


@dataclass(frozen=True)
class Widths:
    """Bytes of a value that is kept for the backward pass.

    Attributes:
        half: in the precision of matrix products.
        norm: around a norm and its activation, in float32: before and between, on a CPU only before, whose kernels
            compute the value between the two again.
    """

    half: int
    norm: int


def widths_of(config: RunConfig, device: Device) -> Widths:
    """Return the bytes of a value in a run of ``config``."""
    precision = config.trainer.precision
    half = 2 if precision == "bf16-mixed" or (precision == "auto" and device == "cuda") else 4
    return Widths(half, 4 if device == "cpu" and config.training.channels_last else 8)


def num_passes(*, recomputes: bool) -> int:
    """Return the work of a training step in forward passes: the backward pass costs two, recomputation one more."""
    return 4 if recomputes else 3
