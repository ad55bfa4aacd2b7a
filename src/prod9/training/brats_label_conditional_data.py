"""BraTSLabelConditionalDataModule: tokens and modality labels for stage 2a."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.data.latents import Encode, TokenStore
from prod9.data.sampling import SampleKey
from prod9.data.splits import Part, Split
from prod9.training.brats_data import AbstractBraTSDataModule
from prod9.training.brats_tokens import BraTSTokens
from prod9.training.config_schema import TransformerConfig
from prod9.training.lightning.datamodule import Progress


class BraTSLabelConditionalDataModule(AbstractBraTSDataModule):
    """Tokens of whole volumes with the class of their modality, which the file names tell.

    encode, indices_to_codes, encoder_hash, upstream_split: see
    :class:`~prod9.training.brats_tokens.BraTSTokens`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        encode: Encode | None = None,
        indices_to_codes: Callable[[Tensor], Tensor] | None = None,
        encoder_hash: str | None = None,
        upstream_split: Split | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(config, progress=progress)
        self._tokens = BraTSTokens(
            config,
            builder=self._builder,
            encode=encode,
            indices_to_codes=indices_to_codes,
            encoder_hash=encoder_hash,
            upstream_split=upstream_split,
        )

    def build_dataset(self, part: Part) -> Dataset[dict[str, Any]]:
        """Return the encoded volumes of the patients of ``part``."""
        store, codebook = self._tokens.build(part, self._cache(part), self.split, self._report)
        return _LabelConditionalDataset(store, codebook)


class _LabelConditionalDataset(Dataset[dict[str, Any]]):
    """One volume's tokens a sample; the mirrored copies are items of their own, so nothing is random here."""

    def __init__(self, store: TokenStore, codebook: Tensor) -> None:
        self._store = store
        self._codebook = codebook

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """Return ``label``, ``target_latent`` [Z h w d], ``target_indices``, ``foreground`` [h w d] …"""
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
