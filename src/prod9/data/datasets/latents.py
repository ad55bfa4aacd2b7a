"""Samples of latents, with or without images of the same case: what MAISI's stages 2 and 3 are trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.data.preprocessing import dequantise
from prod9.data.sampling import SampleKey, index_of
from prod9.data.stores.cache import CaseCache
from prod9.data.stores.latents import TokenStore


class LatentDataset(Dataset[dict[str, Any]]):
    """One volume's latent per sample; mirrored copies are items of their own, so nothing is random here.

    store: the volumes. spacing: mm of their voxels. covariates: features ``[K C]`` by case, for samples with
    ``covariates``; None for none.
    """

    def __init__(
        self, store: TokenStore, *, spacing: Sequence[float], covariates: Mapping[str, Tensor] | None = None
    ) -> None:
        self.store = store
        self._covariates = covariates
        self._spacing: Tensor = torch.tensor(spacing, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return ``label``, ``latent`` float32 [Z h w d], ``spacing`` float32 [3] in mm, and names.

        ``foreground``: bool [h w d], True where a position's patch holds any of the head.
        """
        index = index_of(key)
        item = self.store.describe(index)
        return {
            **item,
            "label": torch.tensor(item["label"]),
            "latent": self.store.latent(index),
            "foreground": self.store.foreground(index),
            "spacing": self._spacing,
            **({} if self._covariates is None else {"covariates": self._covariates[item["case_id"]]}),
        }


class SourceImages(Dataset[dict[str, Any]]):
    """Latents, each with ``images`` float32 [N H W D] in [0, 1] of its own case, mirrored alike.

    Args:
        latents: the samples.
        cases: the cases that they were encoded from.
        modalities: names in the order of a case's images.
        slots: places of the sources among them. The slot of the target's own modality holds zeros, since the image
            itself would give the answer away.
        averages: also give the mean latent of those sources.
    """

    def __init__(
        self,
        latents: LatentDataset,
        cases: CaseCache,
        *,
        modalities: Sequence[str],
        slots: Sequence[int],
        averages: bool = False,
    ) -> None:
        self._latents = latents
        self._cases = cases
        self._modalities = tuple(modalities)
        self._slots = tuple(slots)
        self._place = {case.case_id: place for place, case in enumerate(cases.cases)}
        self._found: dict[tuple[str, str, bool], int] = {}
        if averages:
            described = (latents.store.describe(index) for index in range(len(latents)))
            self._found = {
                (d["case_id"], d["modality"], bool(d["flipped"])): i for i, d in enumerate(described)
            }

    def __len__(self) -> int:
        return len(self._latents)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return the sample of the latent with ``images`` and, where it is asked for, ``source_latent`` [Z h w d]."""
        item = self._latents[key]
        volumes = self._cases[self._place[item["case_id"]]].images
        target = self._modalities.index(item["modality"])
        images = torch.stack([dequantise(volumes[slot]) * float(slot != target) for slot in self._slots])
        item = {**item, "images": images.flip(1) if item["flipped"] else images}
        return {**item, "source_latent": self._mean_latent(item)} if self._found else item

    def _mean_latent(self, item: dict[str, Any]) -> Tensor:
        names = [self._modalities[slot] for slot in self._slots if self._modalities[slot] != item["modality"]]
        places = [self._found[item["case_id"], name, bool(item["flipped"])] for name in names]
        return torch.stack([self._latents.store.latent(place) for place in places]).mean(0)
