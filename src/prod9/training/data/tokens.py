"""AbstractBraTSTokenDataModule: what the data modules of MaskGiT's stage 2 on BraTS have in common."""

from abc import abstractmethod
from typing import Any

from torch.utils.data import Dataset

from prod9.config.schema import TransformerConfig
from prod9.data.datasets.segmented import SegmentedSamples
from prod9.data.splits import Part
from prod9.data.stores.latents import TokenStore
from prod9.errors import ConfigError
from prod9.training.data.brats import AbstractBraTSDataModule
from prod9.training.data.encoded import EncodedSource

_ANY_CLASS = 256
"""Bound on the classes of a segmentation that only says where something is."""


class AbstractBraTSTokenDataModule(AbstractBraTSDataModule):
    """Samples of tokens; in training with ``seg`` beside them where the loss weighs what is segmented."""

    def __init__(self, config: TransformerConfig, *, encoded: EncodedSource) -> None:
        super().__init__(config, progress=encoded.progress)
        self.config: TransformerConfig = config
        self._encoded = encoded

    @abstractmethod
    def build_samples(self, part: Part, store: TokenStore) -> Dataset[dict[str, Any]]:
        """Return the samples of ``part``, whose volumes ``store`` holds."""

    def build_dataset(self, part: Part) -> Dataset[dict[str, Any]]:
        """Return the encoded volumes of the patients of ``part``."""
        samples = self.build_samples(part, self._encoded.open(self, part))
        key = self.config.loss.weighted_region
        if part != "train" or key is None:
            return samples
        directory = self.config.store_dir / "segmentations"
        with self.report(f"Reading {part} segmentations") as progress:
            segmentations = self.build_segmentations(
                part, directory=directory, num_classes=_ANY_CLASS, progress=progress
            )
        if not segmentations.num_segmented:
            raise ConfigError(
                f"{key}: expected segmentations to weigh by, got no case of the {part} split in "
                f"{self.config.data.root} with one; add them, or remove the key."
            )
        return SegmentedSamples(samples, segmentations)
