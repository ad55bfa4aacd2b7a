"""Generation under a control network of either family: placing, checking and numbering are the same for both."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from prod9.config.schema import ControlSamplingConfig
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.errors import ConfigError
from prod9.generator.controlnet_maskgit import ControlNetMaskGiT
from prod9.models.checkpoint_manager import Loaded
from prod9.pipelines.labels import AbstractLabelPipeline, GeneratedVolume
from prod9.pipelines.placement import GridPlacement
from prod9.pipelines.segmentation import PlacedSegmentation, place_segmentation, place_sources
from prod9.system.progress import FineProgress, Share


class AbstractControlPipeline(ABC):
    """Steers a label pipeline. A final class defines the condition of the control network and how it is sampled.

    Args:
        generator: the base, which samples and decodes.
        controlnet: trained on the base; moved to its device.
        control_strength: factor of all that control adds; 0 gives the base's volume bit for bit.
        control_guidance_scale: how far to go from the base's prediction beyond the controlled one.
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

    @classmethod
    def _of_loaded(
        cls, loaded: Loaded[Any], control: ControlSamplingConfig, generator: AbstractLabelPipeline
    ) -> Self:
        generator.sha256 = {"controlnet": loaded.sha256, **generator.sha256}
        return cls(generator=generator, controlnet=loaded.network, **control.kwargs())

    @property
    @abstractmethod
    def condition_type(self) -> str:
        """The parts of the control network's condition, in words."""

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
        report: Share | None = None,
    ) -> torch.Tensor:
        """Return one latent (or token grid) per seed, of the class ``label`` under control.

        With strength 0 and the same seeds it is what ``generator.sample_label`` returns.

        Args:
            label: class label.
            segs: uint8 ``[B H W D]`` on the grid.
            seeds: one per sample.
            images: float32 ``[B N H W D]``.
            report: called with the share done.
        """

    @property
    def placement(self) -> GridPlacement:
        """What brings files to the model's grid."""
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

        Args:
            path: the segmentation; None to place ``sources`` alone.
            reference: the scan on whose voxels it lies.
            label_scheme: what its values mean.
            sources: modality → volume on the same voxels, the source images.
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
        num_samples: int = 1,
        seed: int = 0,
        batch_size: int = 1,
        start: int = 0,
        progress: FineProgress | None = None,
    ) -> Iterator[GeneratedVolume]:
        """Yield samples ``start … start + num_samples - 1`` of the modality ``label`` under ``seg``.

        Sample k has the random numbers of sample k of the base's own ``generate``, so that
        strength 0 gives exactly that volume. Volumes lie where the segmentation lies.

        Args:
            label: a modality, or an alias.
            seg: the segmentation, on the model's grid; None without any.
            num_samples: how many.
            seed: of the first.
            batch_size: samples drawn together; none depends on it.
            start: number of the first sample.
            progress: called with the share done.
        """
        has_images = seg is not None and seg.images is not None
        label = self.generator.known_label(label)
        self.check(label, seg is not None and seg.has_seg, has_images)
        number = self.generator.label_map[label]

        def draw(seeds: Sequence[int], report: Share) -> torch.Tensor:
            return self.sample_label(
                number,
                segs=repeated(seg.seg if seg is not None and seg.has_seg else None, len(seeds)),
                images=repeated(None if seg is None else seg.images, len(seeds)),
                seeds=seeds,
                report=report,
            )

        return self.generator.volumes(
            draw,
            label,
            None if seg is None else seg.affine,
            num_samples=num_samples,
            seed=seed,
            batch_size=batch_size,
            start=start,
            progress=progress,
        )

    def check(self, label: str, has_seg: bool, has_images: bool = False) -> None:
        """Refuse with a ConfigError what cannot be generated, before anything is computed."""
        self.generator.known_label(label)
        what = f"for control of condition_type {self.condition_type!r}"
        if has_seg != self.needs_seg:
            wanted, remedy = ("a", "pass") if self.needs_seg else ("no", "leave out")
            raise ConfigError(
                f"seg: expected {wanted} segmentation {what}, got {'one' if has_seg else 'none'}; {remedy} --seg."
            )
        slots = self.source_modalities
        if has_images != bool(slots):
            wanted = f"source images ({', '.join(slots)})" if slots else "no source images"
            raise ConfigError(
                f"sources: expected {wanted} {what}, got {'some' if has_images else 'none'}; "
                f"{'pass' if slots else 'leave out'} --source NAME=FILE."
            )


def repeated(one: np.ndarray | None, count: int) -> np.ndarray | None:
    """Return a batch of ``count`` copies of an array; None for None."""
    return None if one is None else np.repeat(one[None], count, axis=0)
