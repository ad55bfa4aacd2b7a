"""BraTSDiffusionDataModule: latents, modality labels and spacing for stage 2 of MAISI."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.data.latents import Encode, TokenStore
from prod9.data.sampling import SampleKey
from prod9.data.splits import Part, Split
from prod9.training.brats_data import AbstractBraTSDataModule
from prod9.training.brats_tokens import BraTSTokens
from prod9.training.config_schema import MaisiDiffusionConfig
from prod9.training.lightning.datamodule import Progress


class BraTSDiffusionDataModule(AbstractBraTSDataModule):
    """Mean latents of whole volumes with the class of their modality, which the file names tell.

    encode, encoder_hash, upstream_split: see :class:`~prod9.training.brats_tokens.BraTSTokens`.
    """

    def __init__(
        self,
        config: MaisiDiffusionConfig,
        *,
        encode: Encode | None = None,
        encoder_hash: str | None = None,
        upstream_split: Split | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(config, progress=progress)
        self._latents = BraTSTokens(
            config,
            builder=self._builder,
            encode=encode,
            indices_to_codes=None,
            encoder_hash=encoder_hash,
            upstream_split=upstream_split,
        )

    def build_dataset(self, part: Part) -> "LatentDataset":
        """Return the encoded volumes of the patients of ``part``."""
        store = self._latents.build_store(part, self._cache(part), self.split, self._report)
        return LatentDataset(store, spacing=self.spacing)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between voxels of the grid along each axis."""
        return tuple(np.linalg.norm(np.asarray(self.reference_affine)[:3, :3], axis=0).tolist())

    @property
    def latent_std(self) -> float:
        """Deviation of all latent values of the training part, mirrored copies included."""
        dataset = self._dataset("train")
        assert isinstance(dataset, LatentDataset)
        return dataset.store.latent_std()


class LatentDataset(Dataset[dict[str, Any]]):
    """One volume's latent a sample; the mirrored copies are items of their own, so nothing is random here."""

    def __init__(self, store: TokenStore, *, spacing: tuple[float, ...]) -> None:
        self.store = store
        self._spacing: Tensor = torch.tensor(spacing, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return ``label``, ``latent`` float32 [Z h w d], ``spacing`` float32 [3] in mm, and names."""
        index = key.index if isinstance(key, SampleKey) else key
        item = self.store.describe(index)
        return {
            "label": torch.tensor(item["label"]),
            "latent": self.store.latent(index),
            "spacing": self._spacing,
            "case_id": item["case_id"],
            "modality": item["modality"],
        }
