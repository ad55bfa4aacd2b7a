"""BraTSDiffusionDataModule: latents, modality labels and spacing for stages 2 and 3 of MAISI."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.config.schema import MaisiControlNetConfig, MaisiDiffusionConfig
from prod9.data.preprocessing import dequantise
from prod9.data.sampling import SampleKey
from prod9.data.splits import Part, Split
from prod9.data.stores.cache import CaseCache
from prod9.data.stores.latents import Encode, ParallelEncode, TokenStore
from prod9.training.data.brats import AbstractBraTSDataModule
from prod9.training.data.module import Progress
from prod9.training.data.tokens import BraTSTokens


class BraTSDiffusionDataModule(AbstractBraTSDataModule):
    """Mean latents of whole volumes with the class of their modality, which the file names tell.

    In stage 3 with source images beside them, where its condition takes some.
    encode, encoder_hash, upstream_split: see :class:`~prod9.training.data.tokens.BraTSTokens`.
    """

    def __init__(
        self,
        config: MaisiDiffusionConfig | MaisiControlNetConfig,
        *,
        encode: Encode | ParallelEncode | None = None,
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

    def build_dataset(self, part: Part) -> "LatentDataset | SourceImages":
        """Return the encoded volumes of the patients of ``part``."""
        store = self._latents.build_store(part, self._cache(part), self.split, self._report)
        dataset, config = LatentDataset(store, spacing=self.spacing), self.config
        if not isinstance(config, MaisiControlNetConfig) or not config.condition.source_modalities:
            return dataset
        order = config.data.modalities
        slots = [order.index(name) for name in config.condition.source_modalities]
        return SourceImages(dataset, self._cache(part), modalities=order, slots=slots)

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
        """Return ``label``, ``latent`` float32 [Z h w d], ``spacing`` float32 [3] in mm, and names.

        ``foreground``: bool [h w d], True where a position's patch holds any of the head.
        """
        index = key.index if isinstance(key, SampleKey) else key
        item = self.store.describe(index)
        return {
            "label": torch.tensor(item["label"]),
            "latent": self.store.latent(index),
            "foreground": self.store.foreground(index),
            "flipped": item["flipped"],
            "spacing": self._spacing,
            "case_id": item["case_id"],
            "modality": item["modality"],
        }


class SourceImages(Dataset[dict[str, Any]]):
    """Latents, each with ``images`` float32 [N H W D] in [0, 1] of its own case, mirrored alike.

    modalities: names in the order of a case's images. slots: places among them of the sources. The slot of the
    target's own modality is 0 throughout: it would give the answer away.
    """

    def __init__(
        self, latents: LatentDataset, cases: CaseCache, *, modalities: Sequence[str], slots: Sequence[int]
    ) -> None:
        self._latents = latents
        self._cases = cases
        self._modalities = tuple(modalities)
        self._slots = tuple(slots)
        self._place = {case.case_id: place for place, case in enumerate(cases.cases)}

    def __len__(self) -> int:
        return len(self._latents)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return the latent's item with ``images``."""
        item = self._latents[key]
        volumes = self._cases[self._place[item["case_id"]]].images
        target = self._modalities.index(item["modality"])
        images = torch.stack([dequantise(volumes[slot]) * float(slot != target) for slot in self._slots])
        return {**item, "images": images.flip(1) if item["flipped"] else images}
