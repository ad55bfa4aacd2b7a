"""ControlNetDataModule: what the base was trained on, with the segmentations of the same cases, for stage 3."""

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from prod9.config.schema import MaisiControlNetConfig, MaskGiTControlNetLightningConfig
from prod9.data.datasets.segmented import SegmentedSamples
from prod9.data.splits import Part, Split
from prod9.errors import ConfigError
from prod9.training.data.module import AbstractDataModule, AbstractSegmentedDataModule


class ControlNetDataModule(AbstractDataModule):
    """Samples of the base's data module with ``seg`` uint8 [H W D] and ``has_seg`` beside them.

    A segmentation is mirrored with its volume and not changed otherwise, so the two stay aligned.

    Args:
        config: of the run.
        inner: makes the samples of the base, from the same data section; of any dataset family.
        base_split: of the run that trained the base, whose training patients may not be held out; None: not checked.
    """

    def __init__(
        self,
        config: MaskGiTControlNetLightningConfig | MaisiControlNetConfig,
        *,
        inner: AbstractSegmentedDataModule,
        base_split: Split | None = None,
    ) -> None:
        super().__init__(config)
        self.config: MaskGiTControlNetLightningConfig | MaisiControlNetConfig = config
        self._inner = inner
        self._base_split = base_split

    def find_reference_affine(self) -> np.ndarray:
        """Return that of the base's data module."""
        return self._inner.find_reference_affine()

    def content_digests(self) -> dict[str, str]:
        """Return those of the base's data module."""
        return self._inner.content_digests()

    def find_split(self) -> Split:
        """Return that of the base's data module; ConfigError if the base was trained on held-out patients."""
        self._inner.require_held_out(self._base_split, base="a base")
        return self._inner.split

    def build_dataset(self, part: Part) -> Dataset[dict[str, Any]]:
        """Return the base's samples of ``part`` with their segmentations; ConfigError if none has one."""
        with self.report(f"Reading {part} segmentations") as progress:
            segmentations = self._inner.build_segmentations(
                part,
                directory=self.config.store_dir / "segmentations",
                num_classes=self.config.condition.num_mask_classes,
                progress=progress,
            )
        wanted = self.config.condition.condition_type
        if self.config.condition.takes_seg and not segmentations.num_segmented:
            raise ConfigError(
                f"condition.condition_type: expected segmentations to train {wanted!r} with, got no case of the "
                f"{part} split in {self.config.data.root} with one; add them, or use label."
            )
        return SegmentedSamples(self._inner.build_dataset(part), segmentations)


BraTSControlNetDataModule = ControlNetDataModule
"""The older name, from when BraTS was the only dataset family."""
