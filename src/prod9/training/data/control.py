"""BraTSControlNetDataModule: what the base was trained on, and the segmentation that goes with it."""

from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from prod9.config.schema import MaisiControlNetConfig, MaskGiTControlNetLightningConfig
from prod9.data.splits import Part, Split
from prod9.errors import ConfigError
from prod9.training.data.module import AbstractDataModule, AbstractSegmentedDataModule, Progress
from prod9.training.data.segmented import SegmentedSamples


class BraTSControlNetDataModule(AbstractDataModule):
    """Samples of the base's own data module with ``seg`` uint8 [H W D] and ``has_seg`` beside them.

    A segmentation is mirrored with its volume and changed by nothing else, so the two stay aligned.
    inner: makes the base's samples, from the same data section. base_split: of the run that trained the base;
    a patient it trained on may not be held out here.
    """

    def __init__(
        self,
        config: MaskGiTControlNetLightningConfig | MaisiControlNetConfig,
        *,
        inner: AbstractSegmentedDataModule,
        base_split: Split | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(config, progress=progress)
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
        """Return the division of the base's data module; ConfigError where the base knows held-out patients."""
        split = self._inner.split
        leaked = [] if self._base_split is None else split.trained_elsewhere(self._base_split)
        if leaked:
            raise ConfigError(
                "data.split: expected patients to be held out in all stages, but the base was trained "
                f"on {len(leaked)} that this run holds out ({', '.join(leaked[:5])}); use the same data.split, "
                "or set data.split.file to the split.json of the base's run."
            )
        return split

    def build_dataset(self, part: Part) -> Dataset[dict[str, Any]]:
        """Return the base's samples of ``part`` with their segmentations; ConfigError if none has one."""
        with self._report(f"Reading {part} segmentations") as progress:
            segmentations = self._inner.build_segmentations(
                part,
                directory=self._directory,
                num_classes=self.config.condition.num_mask_classes,
                progress=progress,
            )
        wanted = self.config.condition.condition_type
        if self.config.condition.takes_seg and not segmentations.num_segmented:
            raise ConfigError(
                f"condition.condition_type: expected segmentations to train {wanted!r} with, but no case of "
                f"the {part} split in {self.config.data.root} has one; add them, or use label."
            )
        return SegmentedSamples(self._inner.build_dataset(part), segmentations)

    @property
    def _directory(self) -> Path:
        return self.config.store_dir / "segmentations"
