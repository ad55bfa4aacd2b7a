"""Generation from a class label, for both families: numbering, seeds, batches and decoding."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import NotRequired, TypedDict, Unpack

import numpy as np
import torch

from prod9.autoencoder.inference import AutoencoderInferenceWrapper
from prod9.config.errors import did_you_mean
from prod9.config.schema import CovariatesConfig
from prod9.data.covariates import CovariateCoder, CovariateValues
from prod9.diffusion.sampler import RectifiedFlowSampler
from prod9.errors import ConfigError
from prod9.generator.maskgit import MaskGiTSampler
from prod9.modalities import known_as
from prod9.pipelines.detail import Finisher
from prod9.pipelines.placement import GridPlacement, stripped
from prod9.system.progress import FineProgress, Share, within

DETAIL = "detail"
"""The role of a detail flow among the checkpoints that a pipeline uses."""
DETAIL_STREAM = 1
"""Sets what a detail flow draws apart from what the sampler draws with the same seed and label."""
Draw = Callable[[Sequence[int], Share], torch.Tensor]
"""Called with one seed per sample and a report of the share done; returns a latent or token grid per seed."""


def derived_seed(seed: int, *stream: int) -> int:
    """Return the seed of one of many streams: 63 bits, unrelated for any two different arguments.

    Seeds of neighbouring volumes and labels are neighbouring numbers; used as they are, volumes of one index
    would share their noise over all labels. stream: numbers from 0.
    """
    # Their number goes first: SeedSequence ignores zeros at the end.
    sequence = np.random.SeedSequence([len(stream), seed, *stream])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def draw_samples(
    draw: Draw,
    *,
    label: int,
    num_samples: int,
    seed: int,
    batch_size: int,
    start: int = 0,
    report: Callable[[float], None] | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the index and the latent (a batch of one) of samples ``start … start + num_samples - 1``.

    Args:
        draw: what samples a batch.
        label: class label; with ``seed`` it decides the random numbers.
        num_samples: how many samples to draw.
        seed: sample k has the seed ``derived_seed(seed + k, label)``.
        batch_size: samples drawn together; none depends on it.
        start: index of the first sample.
        report: called with the number of samples done, fractions included.
    """
    if num_samples < 1 or batch_size < 1 or start < 0:
        raise ValueError(
            "num_samples, batch_size, start: expected at least 1, 1 and 0, got "
            f"{num_samples}, {batch_size} and {start}."
        )

    def batches() -> Iterator[tuple[int, torch.Tensor]]:
        for first in range(0, num_samples, batch_size):
            count = min(batch_size, num_samples - first)
            done = within(report, first, count)
            indices = range(start + first, start + first + count)
            latents = draw([derived_seed(seed + k, label) for k in indices], done)
            yield from zip(indices, latents.split(1), strict=True)
            done(1.0)

    return batches()


@dataclass(frozen=True)
class GeneratedVolume:
    """One sample.

    Attributes:
        data: float32 ``[H W D]`` in [0, 1], RAS.
        affine: 4×4, voxel to mm.
        label: name of its class.
        index: its number among the samples of the label.
        seed: the run's seed plus the index: ``generate(label, num_samples=1, seed=volume.seed)`` draws it again.
        covariates: values that were drawn from ranges.
    """

    data: np.ndarray
    affine: np.ndarray
    label: str
    index: int
    seed: int
    covariates: Mapping[str, float] = field(default_factory=dict)


class VolumeGrid(TypedDict):
    """What a model generates, as keywords of its pipeline.

    Attributes:
        label_map: name to class label.
        grid: voxels ``(H, W, D)`` of the volumes, a multiple of the autoencoder's downsampling factor.
        affine: 4×4 of that grid, voxel to mm.
        placement: brings files to the grid as in training; None where that is not known.
    """

    label_map: dict[str, int]
    grid: tuple[int, int, int]
    affine: np.ndarray
    placement: NotRequired[GridPlacement | None]


class AbstractLabelPipeline(ABC):
    """Label-conditional generation. A final class defines how latents are sampled and decoded.

    Args:
        autoencoder: stage 1; put in evaluation mode and moved to ``device``.
        sampler: draws latents.
        device: where to compute.
        sha256: of the checkpoints of all stages, for the record.
        volumes: see :class:`VolumeGrid`.
    """

    def __init__(
        self,
        *,
        autoencoder: AutoencoderInferenceWrapper,
        sampler: MaskGiTSampler | RectifiedFlowSampler,
        device: str | torch.device,
        sha256: dict[str, str] | None,
        **volumes: Unpack[VolumeGrid],
    ) -> None:
        factor = autoencoder.autoencoder.downsampling_factor
        self.device = torch.device(device)
        self.autoencoder = autoencoder.to(self.device).eval()
        self.sampler = sampler
        self.sha256 = dict(sha256 or {})
        self.label_map = dict(volumes["label_map"])
        self.grid = tuple(volumes["grid"])
        self.latent_grid = tuple(side // factor for side in self.grid)
        self.affine = np.asarray(volumes["affine"], dtype=np.float64)
        self._placement = volumes.get("placement")
        self.detail: Finisher | None = None
        self.coder: CovariateCoder | None = None
        self._covariates: CovariateValues | None = None

    def know_covariates(self, config: CovariatesConfig | None) -> None:
        """Remember which covariates the model was trained with; None for none."""
        if config is not None:
            self.coder = CovariateCoder(numbers=config.numbers, categories=config.categories)

    def set_covariates(self, values: Mapping[str, str]) -> None:
        """Generate for these covariates, name → value, from now on; all others are unknown.

        A number may be a range, as ``10:60``: every sample draws its own value from it. Raises ConfigError for a name
        or value that the model does not know.
        """
        if self.coder is None:
            raise ConfigError(
                f"--set-covariate: expected a model that was trained with covariates, got one without, and "
                f"{', '.join(values)}; leave it out, or train with a `covariates` section."
            )
        self._covariates = CovariateValues.of(self.coder, values, source="--set-covariate")

    def covariates_of(self, seeds: Sequence[int]) -> torch.Tensor | None:
        """Return the covariates that are set, ``[B K C]``, for the seed of each sample; None where none are."""
        return None if self._covariates is None else torch.stack([self._covariates.encode(s) for s in seeds])

    def drawn_covariates(self, name: str, seed: int) -> dict[str, float]:
        """Return the values that the sample of the label ``name`` and of the run's ``seed`` plus its index drew."""
        if self._covariates is None:
            return {}
        return self._covariates.drawn(derived_seed(seed, self.label_map[name]))

    def sharpen_with(self, detail: Finisher | None) -> None:
        """Finish generated volumes by ``detail`` from now on; None leaves them as they are decoded."""
        self.detail = detail
        self.sha256 = {role: sha256 for role, sha256 in self.sha256.items() if role != DETAIL}
        if detail is not None and detail.sha256:
            self.sha256[DETAIL] = detail.sha256

    @property
    def steps(self) -> int:
        """Steps of the sampler."""
        return self.sampler.steps

    @property
    def placement(self) -> GridPlacement:
        """What brings files to the grid; ValueError where it is not known."""
        if self._placement is None:
            raise ValueError("placement: expected one, got None; build the pipeline with from_checkpoint.")
        return self._placement

    @placement.setter
    def placement(self, placement: GridPlacement) -> None:
        self._placement = placement

    @abstractmethod
    def sample_label(self, label: int, seeds: Sequence[int], report: Share) -> torch.Tensor:
        """Return one latent (or token grid) per seed, of the class ``label``."""

    @abstractmethod
    def decode_sample(self, sample: torch.Tensor) -> np.ndarray:
        """Return the volume, float32 ``[H W D]`` in [0, 1], of one entry of what ``sample_label`` returned."""

    @torch.inference_mode()
    def decode_latent(self, latent: torch.Tensor) -> np.ndarray:
        """Return the volume of one latent ``[1 Z h w d]``: float32 ``[H W D]`` in [0, 1]."""
        return self.autoencoder.decode(latent)[0, 0].float().clamp(0.0, 1.0).cpu().numpy()

    def sharpened(self, volume: np.ndarray, label: str, seed: int) -> np.ndarray:
        """Return a decoded volume as the detail flow sharpens it, or as it is where there is none.

        Args:
            volume: float32 ``[H W D]`` in [0, 1].
            label: name of its class.
            seed: that of the run plus the index of the volume.
        """
        if self.detail is None:
            return volume
        return self.detail.sharpen(
            volume, label, seed=derived_seed(seed, self.label_map[label], DETAIL_STREAM)
        )

    def finished(self, volume: np.ndarray, label: str, seed: int) -> np.ndarray:
        """Return a decoded volume sharpened and, if scans were skull-stripped, with exactly 0 outside of the head.

        The arguments are those of :meth:`sharpened`.
        """
        volume = self.sharpened(volume, label, seed)
        return stripped(volume) if self.is_stripped else volume

    @property
    def is_stripped(self) -> bool:
        """Whether the training scans were heads on a background of exactly 0, brighter than its surroundings.

        Not so with a ``range`` of raw values, as of a CT, whose lungs are nearly as dark as the air around the body.
        """
        placement = self._placement
        return placement is not None and placement.crop and placement.intensity.mode == "percentile"

    def label_names(self) -> list[str]:
        """Return the names that can be generated, in the order of their class labels."""
        return sorted(self.label_map, key=self.label_map.__getitem__)

    def known_label(self, label: str | int) -> str:
        """Return the name of ``label``: a name in any case, one of its aliases, or a class label; else ConfigError."""
        asked = known_as(label, self.label_names()) if isinstance(label, str) else label
        if isinstance(label, str | Integral) and not isinstance(label, bool):
            for name, value in self.label_map.items():
                if asked in (name, value):
                    return name
        names = self.label_names()
        numbers = ", ".join(str(self.label_map[name]) for name in names)
        hint = did_you_mean(label, names) if isinstance(label, str) else ""
        raise ConfigError(
            f"label: expected one of {', '.join(names)}, got {label!r}"
            + (hint or f"; the model has no other (class labels: {numbers}).")
        )

    def generate(
        self,
        label: str | int,
        *,
        num_samples: int = 1,
        seed: int = 0,
        batch_size: int = 1,
        start: int = 0,
        progress: FineProgress | None = None,
    ) -> Iterator[GeneratedVolume]:
        """Yield samples ``start … start + num_samples - 1`` of ``label`` (its name or class label).

        Sample k draws from a generator of its own, seeded with ``derived_seed(seed + k, label)`` on the pipeline's
        device, and is decoded and sharpened alone: it does not depend on ``batch_size``, ``start`` or the samples
        beside it, and sample k of another label has nothing in common with it.

        Args:
            label: name or class label.
            num_samples: how many to generate.
            seed: of sample 0.
            batch_size: samples drawn together.
            start: index of the first sample.
            progress: called with the volumes done, fractions included, and ``num_samples``.
        """
        name = self.known_label(label)
        return self.volumes(
            partial(self.sample_label, self.label_map[name]),
            name,
            num_samples=num_samples,
            seed=seed,
            batch_size=batch_size,
            start=start,
            progress=progress,
        )

    def volumes(
        self,
        draw: Draw,
        name: str,
        affine: np.ndarray | None = None,
        *,
        num_samples: int,
        seed: int,
        batch_size: int,
        start: int,
        progress: FineProgress | None,
    ) -> Iterator[GeneratedVolume]:
        """Yield the volumes of what ``draw`` samples for the label ``name``.

        Args:
            draw: samples latents.
            name: of the label.
            affine: of the volumes, by default that of the grid.
            others: see :meth:`generate`.
        """
        report = None if progress is None else lambda done: progress(done, num_samples)
        samples = draw_samples(
            draw,
            label=self.label_map[name],
            num_samples=num_samples,
            seed=seed,
            batch_size=batch_size,
            start=start,
            report=report,
        )
        affine = self.affine if affine is None else affine
        # One volume at a time: decoding is where the memory goes, and a batch would not be faster.
        return (
            GeneratedVolume(
                self.finished(self.decode_sample(sample), name, seed + index),
                affine.copy(),
                name,
                index,
                seed + index,
                self.drawn_covariates(name, seed + index),
            )
            for index, sample in samples
        )
