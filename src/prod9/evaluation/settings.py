"""What evaluations of two folders have in common. Imports no torch, so that commands may use it."""

from collections.abc import Callable
from dataclasses import dataclass

Report = Callable[[str, int, int], None]
"""Progress of work in several parts: called with (name of the part, done, total)."""


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, kw_only=True)
class SetSettings:
    """Which volumes are compared, and how sure the scores have to be.

    Attributes:
        modalities: only these; empty for all.
        split: a ``split.json``; only its test patients of the real set are compared.
        layout: of the real set.
        label_scheme: of the real set.
        grid: voxels that volumes are compared on; by default those of the generated volumes.
        spacing: voxel size in mm that all volumes are resampled to; None to leave them as they are.
        skip_bad: list files that cannot be used and go on without them.
        replicates: bootstrap samples, 0 for no intervals.
        seed: of all draws.
    """

    modalities: tuple[str, ...] = ()
    split: str | None = None
    layout: str = "auto"
    label_scheme: str = "auto"
    grid: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    skip_bad: bool = False
    replicates: int = 100
    seed: int = 0
