"""Generation under a control network of either family: what is placed, numbered, seeded and refused alike."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.errors import ConfigError
from prod9.generator.controlnet_maskgit import ControlNetMaskGiT
from prod9.pipelines.labels import AbstractLabelPipeline, GeneratedVolume, Progress, derived_seed
from prod9.pipelines.placement import GridPlacement
from prod9.pipelines.segmentation import PlacedSegmentation, place_segmentation, place_sources


class AbstractControlPipeline(ABC):
    """Steers a label pipeline. A final class says what the control network is told and how it is sampled.

    generator: the base, which samples and decodes. controlnet: trained on it; moved to the generator's device.
    control_strength: factor of all that control adds, 0 being the base bit for bit. control_guidance_scale: how far
    to go from the base's prediction beyond the controlled one.
    """

    def __init__(
        self,
        *,
        generator: AbstractLabelPipeline,
        controlnet: ControlNetMaskGiT | ControlNetRF,
        control_strength: float = 1.0,
        control_guidance_scale: float = 0.0,
    ) -> None:
        self.generator = generator
        self.controlnet = controlnet.to(generator.device).eval()
        self.control_strength = control_strength
        self.control_guidance_scale = control_guidance_scale

    @property
    @abstractmethod
    def condition_type(self) -> str:
        """What the control network is told, in words."""

    @property
    @abstractmethod
    def needs_seg(self) -> bool:
        """Whether a segmentation is part of the condition."""

    @property
    def num_mask_classes(self) -> int:
        """Classes of a segmentation, background included."""
        return self.controlnet.num_mask_classes

    @property
    @abstractmethod
    def source_modalities(self) -> tuple[str, ...]:
        """Slots of source images in the condition; none for most."""

    @abstractmethod
    def sample_label(
        self,
        label: int,
        *,
        segs: np.ndarray | None,
        seeds: Sequence[int],
        images: np.ndarray | None = None,
        report: Callable[[float], None] | None = None,
    ) -> torch.Tensor:
        """Return one latent (or token grid) a seed, of the class ``label`` under control.

        segs: uint8 ``[B H W D]`` on the grid. images: float32 ``[B N H W D]``. With strength 0 and the same seeds it
        is what ``generator.sample_label`` returns.
        """

    @property
    def placement(self) -> GridPlacement:
        """What brings files to the model's grid."""
        if self.generator.placement is None:
            raise ValueError("Expected a generator with a placement; build it with from_checkpoint.")
        return self.generator.placement

    def place(
        self,
        path: str | Path | None,
        *,
        reference: str | Path | None = None,
        label_scheme: str = "auto",
        sources: Mapping[str, Path] | None = None,
    ) -> PlacedSegmentation:
        """Bring a segmentation file to the grid; see :func:`~prod9.pipelines.segmentation.place_segmentation`.

        sources: modality → volume on the same voxels, shown as source images; without a path, alone.
        """
        if path is None:
            return place_sources(sources or {}, self.placement, slots=self.source_modalities)
        return place_segmentation(
            Path(path),
            self.placement,
            num_classes=self.num_mask_classes,
            reference=None if reference is None else Path(reference),
            label_scheme=label_scheme,
            sources=sources,
            slots=self.source_modalities,
        )

    def generate(
        self,
        label: str,
        *,
        seg: PlacedSegmentation | None,
        num_samples: int,
        seed: int = 0,
        batch_size: int = 1,
        start: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[GeneratedVolume]:
        """Yield samples ``start … start + num_samples - 1`` of the modality ``label`` under ``seg``.

        Sample k has the random numbers of sample k of the base's own ``generate``, so that strength 0
        gives just that volume; it does not depend on ``batch_size``, ``start`` or the samples beside it. Volumes
        lie where the segmentation lies.
        """
        has_images = seg is not None and seg.images is not None
        self.check(label, seg is not None and seg.has_seg, has_images)
        if num_samples < 1 or batch_size < 1 or start < 0:
            raise ValueError(
                "num_samples and batch_size must be at least 1 and start at least 0, "
                f"got {num_samples}, {batch_size} and {start}."
            )
        return self._generate(label, seg, range(start, start + num_samples), seed, batch_size, progress)

    def check(self, label: str, has_seg: bool, has_images: bool = False) -> None:
        """Refuse with a ConfigError what cannot be generated, before anything is computed."""
        names = self.generator.label_names()
        if label not in names:
            raise ConfigError(
                f"Label: expected one of {', '.join(names)}, got {label!r}; the model knows no other."
            )
        if has_seg != self.needs_seg:
            wanted = "a segmentation" if self.needs_seg else "no segmentation"
            raise ConfigError(
                f"expected {wanted} for control of condition_type {self.condition_type!r}, got "
                f"{'one' if has_seg else 'none'}; {'pass' if self.needs_seg else 'leave out'} --seg."
            )
        if has_images != bool(self.source_modalities):
            names = list(self.source_modalities)
            wanted = f"source images ({', '.join(names)})" if names else "no source images"
            raise ConfigError(
                f"expected {wanted} for control of condition_type {self.condition_type!r}, got "
                f"{'some' if has_images else 'none'}; {'pass' if names else 'leave out'} --source NAME=FILE."
            )

    def _generate(
        self,
        label: str,
        seg: PlacedSegmentation | None,
        indices: range,
        seed: int,
        batch_size: int,
        progress: Progress | None,
    ) -> Iterator[GeneratedVolume]:
        number = self.generator.label_map[label]
        affine = self.generator.affine if seg is None else seg.affine
        for first in range(0, len(indices), batch_size):
            batch = indices[first : first + batch_size]

            def report(share: float, done: int = first, size: int = len(batch)) -> None:
                if progress is not None:
                    progress(done + share * size, len(indices))

            samples = self.sample_label(
                number,
                segs=_repeated(None if seg is None or not seg.has_seg else seg.seg, len(batch)),
                images=_repeated(None if seg is None else seg.images, len(batch)),
                seeds=[derived_seed(seed + k, number) for k in batch],
                report=report,
            )
            for position, index in enumerate(batch):
                data = self.generator.decode_sample(samples[position : position + 1])
                yield GeneratedVolume(data, affine.copy(), label, index, seed + index)
            report(1.0)


def _repeated(one: np.ndarray | None, count: int) -> np.ndarray | None:
    return None if one is None else np.repeat(one[None], count, axis=0)
