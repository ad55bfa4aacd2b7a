"""Which samples a training step takes, as a pure function of the seed and the step.

Nothing here keeps state between steps, so a run that resumes at step k takes exactly the batches of an uninterrupted
run, with any number of loader processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True, slots=True)
class SampleKey:
    """One training sample, as the sampler asks a dataset for it.

    Attributes:
        index: item of the dataset.
        draw: number of the sample since the start of the run, over all ranks; with the run's seed, it determines the
            augmentation.
        whole: asks for the whole volume instead of a crop.
    """

    index: int
    draw: int
    whole: bool = False

    def rng(self, seed: int) -> np.random.Generator:
        """Return the random stream of this draw in a run with ``seed``."""
        return np.random.default_rng((seed, self.draw))


def index_of(key: int | SampleKey) -> int:
    """Return the item that ``key`` asks for."""
    return key.index if isinstance(key, SampleKey) else key


@dataclass(kw_only=True, eq=False)
class StepBatchSampler(Sampler[list[SampleKey]]):
    """Yields the keys of one training step at a time, from ``start_step`` to ``num_steps``.

    The samples ("draws") of a run are numbered; draw d takes the item ``permutation(seed, d // n)[d % n]`` of the
    n = ``num_items``, so that each pass takes every item exactly once. A step takes ``batch_size * world_size``
    consecutive draws, of which each rank takes its own ``batch_size``. The last ``whole_steps`` steps take one draw
    per rank and mark it ``whole``.

    Attributes:
        num_items: items of the dataset.
        batch_size: samples per step and rank.
        num_steps: steps of the run.
        seed: of the run.
        start_step: first step.
        rank: of this process.
        world_size: number of processes.
        whole_steps: last steps that take whole volumes.

    Example:
        >>> from prod9.data.sampling import StepBatchSampler
        >>> run = {"num_items": 3, "batch_size": 2, "num_steps": 3, "seed": 0}
        >>> [[key.index for key in keys] for keys in StepBatchSampler(**run)]
        [[2, 0], [1, 2], [0, 1]]
        >>> [[key.index for key in keys] for keys in StepBatchSampler(**run, start_step=2)]
        [[0, 1]]
    """

    num_items: int
    batch_size: int
    num_steps: int
    seed: int
    start_step: int = 0
    rank: int = 0
    world_size: int = 1
    whole_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("num_items", "batch_size", "world_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}; raise it.")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank: expected 0 to {self.world_size - 1}, got {self.rank}; use that of the process."
            )
        for name in ("whole_steps", "start_step"):
            if not 0 <= getattr(self, name) <= self.num_steps:
                raise ValueError(
                    f"{name}: expected 0 to num_steps, {self.num_steps}, got {getattr(self, name)}; correct it."
                )

    def __len__(self) -> int:
        """Return the number of steps left."""
        return self.num_steps - self.start_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yield each remaining step's keys for this rank."""
        current, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.num_steps):
            keys = []
            whole = step >= self.num_steps - self.whole_steps
            for draw in self._draws(step):
                turn, place = divmod(draw, self.num_items)
                if turn != current:
                    current = turn
                    order = np.random.default_rng((self.seed, turn)).permutation(self.num_items)
                keys.append(SampleKey(int(order[place]), draw, whole))
            yield keys

    def _draws(self, step: int) -> range:
        """Return the draws of this rank in ``step``."""
        crop_steps = self.num_steps - self.whole_steps
        size = self.batch_size if step < crop_steps else 1
        before = min(step, crop_steps) * self.batch_size + max(step - crop_steps, 0)
        first = before * self.world_size + self.rank * size
        return range(first, first + size)
