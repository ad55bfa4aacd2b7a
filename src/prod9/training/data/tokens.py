"""BraTSTokens: the token store of a stage-2 run, from the cases it reads to the codes it trains on."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from prod9.config.schema import RunConfig
from prod9.data.builders import DatasetBuilder
from prod9.data.preprocessing import dequantise
from prod9.data.splits import Part, Split
from prod9.data.stores.cache import CaseCache
from prod9.data.stores.latents import (
    Encode,
    ParallelEncode,
    StoreItem,
    TokenStore,
    build_token_store,
    find_in_store,
)
from prod9.errors import ConfigError
from prod9.training.data.module import Progress


class BraTSTokens:
    """Encodes the volumes of each part once and opens the store.

    encode: float32 [B 1 H W D] on CPU → tokens and latents; None when everything is encoded already.
    indices_to_codes: int64 [B h w d] on CPU → codes [B Z h w d], None for a continuous latent. encoder_hash:
    of the encoder's weights. upstream_split: of the run that trained the encoder; a patient it trained on may
    not be held out here.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        builder: DatasetBuilder,
        encode: Encode | ParallelEncode | None,
        indices_to_codes: Callable[[Tensor], Tensor] | None,
        encoder_hash: str | None,
        upstream_split: Split | None,
    ) -> None:
        if encoder_hash is None:
            raise ValueError("stage 2 needs encoder_hash, the hash of the encoder's weights")
        self._config = config
        self._builder = builder
        self._encode = encode
        self._indices_to_codes = indices_to_codes
        self._encoder_hash = encoder_hash
        self._upstream_split = upstream_split
        self._directory = config.store_dir

    def build(
        self,
        part: Part,
        cases: CaseCache,
        split: Split,
        report: Callable[[str], AbstractContextManager[Progress | None]],
    ) -> tuple[TokenStore, Tensor]:
        """Return the store of ``part`` and the codebook float32 [Z V'], V' covering its largest index.

        Loader processes look codes up, since they cannot call a network that lives on a GPU.
        """
        if self._indices_to_codes is None:
            raise ValueError("a codebook needs indices_to_codes; use build_store for continuous latents")
        store = self.build_store(part, cases, split, report)
        indices = torch.arange(store.max_index + 1)[None, :, None, None]
        return store, self._indices_to_codes(indices)[0, :, :, 0, 0].detach().float().cpu()

    def build_store(
        self,
        part: Part,
        cases: CaseCache,
        split: Split,
        report: Callable[[str], AbstractContextManager[Progress | None]],
    ) -> TokenStore:
        """Return the store of ``part``, encoding what it lacks.

        A case has a row a modality, then as many for its mirror (in training, by ``data.store_flips``).
        """
        self._check_leak(split)
        items = self._items(cases, mirrored=part == "train" and self._config.data.store_flips)
        where = {"key": self._encoder_hash, "grid": self._config.data.grid}
        store = find_in_store(self._directory, items, **where)
        if store is None:
            if self._encode is None:
                raise ConfigError(
                    f"inputs.autoencoder: expected a stage-1 checkpoint, since {self._directory} "
                    f"lacks some of the {len(items)} {part} volumes; set it."
                )
            with report(f"Encoding {part} volumes") as progress:
                store = build_token_store(
                    self._directory, items, self._encode, **where,
                    num_workers=self._config.data.num_workers, progress=progress,
                    overwrite=self._config.data.store_dir is None,
                )  # fmt: skip
        self._builder.hashes.save()
        return store

    def _items(self, cases: CaseCache, *, mirrored: bool) -> list[StoreItem]:
        data = self._config.data
        return [
            StoreItem(
                case_id=case.case_id,
                modality=modality,
                label=data.label_map[modality],
                flipped=flipped,
                content=content,
                load=lambda i=i, m=m: dequantise(cases[i].images[m])[None],
            )
            for i, case in enumerate(cases.cases)
            for content in [self._builder.case_key(case)]
            for flipped in ([False, True] if mirrored else [False])
            for m, modality in enumerate(data.modalities)
        ]

    def _check_leak(self, split: Split) -> None:
        if self._upstream_split is None:
            return
        leaked = split.trained_elsewhere(self._upstream_split)
        if leaked:
            raise ConfigError(
                "data.split: expected patients to be held out in both stages, but the autoencoder was "
                f"trained on {len(leaked)} that this run holds out ({', '.join(leaked[:5])}); use the same "
                "data.split, or set data.split.file to the split.json of the autoencoder's run."
            )
