"""Which sample a training step sees: a pure function of the seed and the step.

Nothing here keeps state between steps, so a run that resumes at step k sees exactly the batches that an
uninterrupted one would have seen, whatever the number of loader processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True, slots=True)
class SampleKey:
    """One training sample: what a training sampler hands to ``Dataset.__getitem__``.

    index: item of the dataset. draw: number of the sample since the start of the run over all ranks; with the
    run's seed it decides the sample's augmentation. whole: True asks for the whole volume, not a crop.
    """

    index: int
    draw: int
    whole: bool = False

    def rng(self, seed: int) -> np.random.Generator:
        """Return the random stream that belongs to this draw of a run with ``seed``."""
        return np.random.default_rng((seed, self.draw))


def index_of(key: int | SampleKey) -> int:
    """Return the item that ``key`` asks for."""
    return key.index if isinstance(key, SampleKey) else key


class StepBatchSampler(Sampler[list[SampleKey]]):
    """Yields the keys of one training step at a time, from ``start_step`` to ``num_steps``.

    The samples of a run are numbered through ("draws"); draw d shows the item
    ``permutation(seed, d // n)[d % n]`` of the n = ``num_items``, so every pass shows each exactly once.
    A step takes ``batch_size * world_size`` draws in a row and each rank its own ``batch_size`` of them. The
    last ``whole_steps`` steps take one draw a rank and mark it ``whole``.
    """

    def __init__(
        self,
        *,
        num_items: int,
        batch_size: int,
        num_steps: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        whole_steps: int = 0,
    ) -> None:
        if num_items < 1 or batch_size < 1 or world_size < 1:
            raise ValueError(
                "num_items, batch_size and world_size must be at least 1, "
                f"got {num_items}, {batch_size} and {world_size}."
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}.")
        if not 0 <= whole_steps <= num_steps:
            raise ValueError(f"whole_steps must be in [0, {num_steps}], got {whole_steps}.")
        if not 0 <= start_step <= num_steps:
            raise ValueError(f"start_step must be in [0, {num_steps}], got {start_step}.")
        self.num_items = num_items
        self.batch_size = batch_size
        self.num_steps = num_steps
        self.seed = seed
        self.start_step = start_step
        self.rank = rank
        self.world_size = world_size
        self.whole_steps = whole_steps

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
                    current, order = turn, self._order(turn)
                keys.append(SampleKey(int(order[place]), draw, whole))
            yield keys

    def _draws(self, step: int) -> range:
        """Return the draws of this rank in ``step``."""
        crop_steps = self.num_steps - self.whole_steps
        size = self.batch_size if step < crop_steps else 1
        before = min(step, crop_steps) * self.batch_size + max(step - crop_steps, 0)
        first = before * self.world_size + self.rank * size
        return range(first, first + size)

    def _order(self, turn: int) -> np.ndarray:
        return np.random.default_rng((self.seed, turn)).permutation(self.num_items)
