"""EncodedSource: what stages 2 and 3 have instead of volumes: tokens or latents of a trained autoencoder."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prod9.data.splits import Part, Split
from prod9.data.stores.latents import Encode, ParallelEncode, TokenStore, build_token_store, find_in_store
from prod9.errors import ConfigError
from prod9.system.progress import Progress
from prod9.training.data.module import AbstractSegmentedDataModule


@dataclass(frozen=True, kw_only=True)
class EncodedSource:
    """The autoencoder that a run of stage 2 or 3 builds on, as its data module needs it.

    Attributes:
        encoder_hash: hash of the encoder's weights; a part of the key of everything that is stored.
        encode: float32 ``[B 1 H W D]`` on the CPU → tokens and latents; None when everything is stored already.
        indices_to_codes: int64 ``[B h w d]`` on the CPU → codes ``[B Z h w d]``; None for continuous latents.
        split: of the run that trained the autoencoder, whose training patients may not be held out; None: not checked.
        progress: called with (done, total) during long work; None draws a bar if ``trainer.progress`` is on.
    """

    encoder_hash: str
    encode: Encode | ParallelEncode | None = None
    indices_to_codes: Callable[[Tensor], Tensor] | None = None
    split: Split | None = None
    progress: Progress | None = None

    def open(self, module: AbstractSegmentedDataModule, part: Part) -> TokenStore:
        """Return the encoded volumes of ``part`` of ``module``, encoding what its store lacks.

        Raises ConfigError when the autoencoder was trained on a patient that is held out, and when something is
        lacking and there is no ``encode``.
        """
        module.require_held_out(self.split, base="an autoencoder")
        config, items = module.config, module.store_items(part)
        where = {"key": self.encoder_hash, "grid": config.data.grid}
        store = find_in_store(config.store_dir, items, **where)
        if store is not None:
            return store
        if self.encode is None:
            raise ConfigError(
                f"inputs.autoencoder: expected a stage-1 checkpoint, since {config.store_dir} lacks some of the "
                f"{len(items)} {part} volumes, got none; set it."
            )
        with module.report(f"Encoding {part} volumes") as progress:
            return build_token_store(
                config.store_dir,
                items,
                self.encode,
                **where,
                batch_size=module.encode_batch_size,
                num_workers=config.data.num_workers,
                progress=progress,
                overwrite=config.data.store_dir is None,
            )

    def codebook(self, store: TokenStore) -> Tensor:
        """Return float32 ``[Z V]``, the codes of all tokens up to the largest of ``store``.

        Loader processes look codes up here, since they cannot call a network that lives on a GPU.
        """
        if self.indices_to_codes is None:
            raise ValueError(
                "indices_to_codes: expected a function for a codebook, got None; latents have no codes."
            )
        indices = torch.arange(store.max_index + 1)[None, :, None, None]
        return self.indices_to_codes(indices)[0, :, :, 0, 0].detach().float().cpu()
