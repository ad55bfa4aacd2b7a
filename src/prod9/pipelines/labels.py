"""Generation from a class label, whichever family samples: numbering, seeds, batches, names."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prod9.errors import ConfigError
from prod9.pipelines.placement import GridPlacement

Progress = Callable[[float, int], None]
"""Called with the volumes done (a fraction while one is being sampled) and their total."""


def derived_seed(seed: int, *stream: int) -> int:
    """Return the seed of one of many streams: 63 bits, unrelated for any two different arguments.

    Seeds of neighbouring volumes and labels are neighbouring numbers; used as they are, volumes of one index
    would share their noise over all labels. stream: numbers from 0.
    """
    # Their number goes first: SeedSequence ignores zeros at the end.
    sequence = np.random.SeedSequence([len(stream), seed, *stream])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class GeneratedVolume:
    """One sample. data: float32 ``[H W D]`` in [0, 1], RAS; affine: 4×4, voxel to mm.

    index: its number k among the samples of the label. seed: that of this very sample (the run's plus k), so
    that ``generate(label, num_samples=1, seed=volume.seed)`` draws it again.
    """

    data: np.ndarray
    affine: np.ndarray
    label: str
    index: int
    seed: int


class AbstractLabelPipeline(ABC):
    """Label-conditional generation. A final class says how latents are sampled and decoded.

    label_map: name to class label. grid: voxels ``(H, W, D)`` of what is generated, affine: 4×4 of that grid.
    sha256: of the files of all stages, for the record. placement: brings files to the grid as in training; None
    where that is not known.
    """

    def __init__(
        self,
        *,
        label_map: dict[str, int],
        grid: tuple[int, int, int],
        affine: np.ndarray,
        device: str | torch.device,
        sha256: dict[str, str] | None,
        placement: GridPlacement | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.label_map = dict(label_map)
        self.grid = tuple(grid)
        self.affine = np.asarray(affine, dtype=np.float64)
        self.sha256 = dict(sha256 or {})
        self.placement = placement

    @property
    @abstractmethod
    def latent_grid(self) -> tuple[int, ...]:
        """Latent positions (tokens, for MaskGiT) along each axis."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps of the sampler."""

    @abstractmethod
    def sample_label(self, label: int, seeds: Sequence[int], report: Callable[[float], None]) -> torch.Tensor:
        """Return one latent (or token grid) a seed, for the class ``label``."""

    @abstractmethod
    def decode_sample(self, sample: torch.Tensor) -> np.ndarray:
        """Return the volume, float32 ``[H W D]`` in [0, 1], of one entry of what ``sample_label`` returned."""

    def label_names(self) -> list[str]:
        """Return the names that can be generated, in the order of their class labels."""
        return sorted(self.label_map, key=self.label_map.__getitem__)

    def generate(
        self,
        label: str | int,
        *,
        num_samples: int,
        seed: int = 0,
        batch_size: int = 1,
        start: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[GeneratedVolume]:
        """Yield samples ``start … start + num_samples - 1`` of ``label`` (its name or class label).

        Sample k draws from its own generator, seeded with ``derived_seed(seed + k, label)`` on the pipeline's
        device, and is decoded alone: it does not depend on ``batch_size``, ``start`` or the samples beside
        it, and sample k of another label shares nothing with it.
        """
        name = self._label_name(label)
        if num_samples < 1 or batch_size < 1 or start < 0:
            raise ValueError(
                "num_samples and batch_size must be at least 1 and start at least 0, "
                f"got {num_samples}, {batch_size} and {start}."
            )
        return self._generate(name, range(start, start + num_samples), seed, batch_size, progress)

    def _generate(
        self, name: str, indices: range, seed: int, batch_size: int, progress: Progress | None
    ) -> Iterator[GeneratedVolume]:
        label = self.label_map[name]
        for first in range(0, len(indices), batch_size):
            batch = indices[first : first + batch_size]

            def report(share: float, done: int = first, size: int = len(batch)) -> None:
                if progress is not None:
                    progress(done + share * size, len(indices))

            samples = self.sample_label(label, [derived_seed(seed + k, label) for k in batch], report)
            for position, index in enumerate(batch):
                # One volume at a time: decoding is where the memory goes, and a batch would not be faster.
                data = self.decode_sample(samples[position : position + 1])
                yield GeneratedVolume(data, self.affine.copy(), name, index, seed + index)
            report(1.0)

    def _label_name(self, label: str | int) -> str:
        for name, value in self.label_map.items():
            if label in (name, value) and not isinstance(label, bool):
                return name
        known = ", ".join(f"{name} ({self.label_map[name]})" for name in self.label_names())
        raise ConfigError(f"Label: expected one of {known}, got {label!r}; the model knows no other.")
