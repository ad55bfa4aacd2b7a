"""Samples of two modalities of one case: what a transformer that translates between them is trained on."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.data.datasets.tokens import token_sample
from prod9.data.sampling import SampleKey
from prod9.data.stores.latents import TokenStore


class TranslationPairs(Dataset[dict[str, Any]]):
    """The tokens of a target modality and the codes of another modality of the same case, mirrored alike.

    A SampleKey draws the source at random; an int takes the next modality.

    Args:
        store: blocks of ``num_modalities`` rows, one block per case and mirroring.
        codebook: float32 ``[Z V]``, the code of each token.
        num_modalities: modalities of a case.
        seed: of the run.
    """

    def __init__(self, store: TokenStore, codebook: Tensor, *, num_modalities: int, seed: int) -> None:
        self._store = store
        self._codebook = codebook
        self._num_modalities = num_modalities
        self._seed = seed

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return the target as in :func:`token_sample`, ``source_latent`` [Z h w d], ``source_label`` and its name."""
        step = 1
        if isinstance(key, SampleKey):
            step = int(key.rng(self._seed).integers(1, self._num_modalities))
            key = key.index
        block, place = divmod(key, self._num_modalities)
        source = self._store[block * self._num_modalities + (place + step) % self._num_modalities]
        return {
            **token_sample(self._store, key),
            "source_latent": self._codebook[:, source["indices"]],
            "source_label": torch.tensor(source["label"]),
            "source_modality": source["modality"],
        }
