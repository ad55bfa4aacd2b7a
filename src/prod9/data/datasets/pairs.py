"""Samples of two modalities of one case: what a transformer that translates between them is trained on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.data.datasets.tokens import token_sample
from prod9.data.sampling import SampleKey
from prod9.data.stores.latents import TokenStore


@dataclass(kw_only=True, eq=False, repr=False)
class TranslationPairs(Dataset[dict[str, Any]]):
    """The tokens of a target modality and the codes of another modality of the same case, mirrored alike.

    A SampleKey draws the source at random; an int takes the next modality.

    Attributes:
        store: blocks of ``num_modalities`` rows, one block per case and mirroring.
        codebook: float32 ``[Z V]``, the code of each token.
        num_modalities: modalities of a case.
        seed: of the run.
    """

    store: TokenStore
    codebook: Tensor
    num_modalities: int
    seed: int

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return the target as in :func:`token_sample`, ``source_latent`` [Z h w d], ``source_label`` and its name."""
        step = 1
        if isinstance(key, SampleKey):
            step = int(key.rng(self.seed).integers(1, self.num_modalities))
            key = key.index
        block, place = divmod(key, self.num_modalities)
        source = self.store[block * self.num_modalities + (place + step) % self.num_modalities]
        return {
            **token_sample(self.store, key),
            "source_latent": self.codebook[:, source["indices"]],
            "source_label": torch.tensor(source["label"]),
            "source_modality": source["modality"],
        }
