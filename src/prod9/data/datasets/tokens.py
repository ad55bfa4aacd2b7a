"""Samples of one encoded volume: what a label-conditional transformer is trained on, whatever the volumes show."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.data.sampling import SampleKey, index_of
from prod9.data.stores.latents import TokenStore


def token_sample(store: TokenStore, index: int) -> dict[str, Any]:
    """Return what every sample of tokens holds.

    ``label`` int64 scalar, ``target_indices`` int64 and ``foreground`` bool ``[h w d]``, ``case_id``, ``modality`` and
    ``flipped``.
    """
    item = store[index]
    tokens, label = item.pop("indices"), torch.tensor(item["label"])
    return {**item, "label": label, "target_indices": tokens}


class LabelledTokens(Dataset[dict[str, Any]]):
    """One volume's tokens per sample; mirrored copies are items of their own, so nothing is random here.

    Attributes:
        store: the volumes.
        covariates: features ``[K C]`` by case, for samples with ``covariates``; None for none.
        mirrored: those of the cases' mirror images, where they differ.
    """

    def __init__(
        self,
        *,
        store: TokenStore,
        covariates: Mapping[str, Tensor] | None = None,
        mirrored: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._store = store
        self._covariates = covariates
        self._mirrored = covariates if mirrored is None else mirrored

    def __len__(self) -> int:
        """Return the number of encoded volumes, mirrored ones included."""
        return len(self._store)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return a sample; see :func:`token_sample`."""
        sample = token_sample(self._store, index_of(key))
        known = self._mirrored if bool(sample["flipped"]) else self._covariates
        return sample if known is None else {**sample, "covariates": known[sample["case_id"]]}
