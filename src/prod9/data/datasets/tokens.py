"""Labelled tokens: what a label-conditional transformer trains on, whichever dataset they come from."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.data.sampling import SampleKey
from prod9.data.stores.latents import TokenStore


class LabelledTokens(Dataset[dict[str, Any]]):
    """One volume's tokens a sample; mirrored copies are items of their own, so nothing is random here.

    store: encoded volumes. codebook: float32 [Z V], the code of each token index.
    """

    def __init__(self, *, store: TokenStore, codebook: Tensor) -> None:
        self._store = store
        self._codebook = codebook

    def __len__(self) -> int:
        """Return the number of encoded volumes, mirrored ones counted."""
        return len(self._store)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return ``label``, ``target_latent`` [Z h w d], ``target_indices`` and ``foreground`` [h w d], names."""
        item = self._store[key.index if isinstance(key, SampleKey) else key]
        return {
            "label": torch.tensor(item["label"]),
            "target_latent": self._codebook[:, item["indices"]],
            "target_indices": item["indices"],
            "foreground": item["foreground"],
            "case_id": item["case_id"],
            "flipped": item["flipped"],
            "modality": item["modality"],
        }
