"""EncodedSource: what stages 2 and 3 have instead of volumes: tokens or latents of a trained autoencoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prod9.data.splits import PARTS, Part, Split
from prod9.data.stores.latents import (
    Encode,
    ParallelEncode,
    StoreItem,
    TokenStore,
    build_token_store,
    find_in_store,
    group_cases,
)
from prod9.data.stores.merging import stored_keys
from prod9.errors import ConfigError
from prod9.system.parts import WorkPart
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

    def items_of_part(
        self, module: AbstractSegmentedDataModule, work: WorkPart
    ) -> tuple[list[tuple[StoreItem, str]], list[str]]:
        """Return the volumes that one part of the work encodes, with their keys, and the keys of all parts.

        It takes every ``work.count``-th case or, of small volumes, batch of them: batches are those of one piece.
        """
        module.require_held_out(self.split, base="an autoencoder")
        grid = module.config.data.grid
        items = [item for part in PARTS if getattr(module.split, part) for item in module.store_items(part)]
        keyed = [(item, item.key(self.encoder_hash, grid)) for item in items]
        groups = group_cases(keyed, module.encode_batch_size)
        mine = [pair for place, group in enumerate(groups) if work.owns(place) for pair in group]
        return mine, [key for _, key in keyed]

    def fill_part(
        self,
        module: AbstractSegmentedDataModule,
        work: WorkPart,
        folder: Path,
        items: Sequence[tuple[StoreItem, str]],
    ) -> None:
        """Encode volumes into a store of their own, but not those that the run's own store holds already.

        Args:
            module: whose volumes they are.
            work: which part of the work it is, for the progress bar.
            folder: of that store.
            items: the volumes with their keys.
        """
        if self.encode is None:
            raise ValueError("encode: expected a function that encodes, got None; give one.")
        config = module.config
        there = stored_keys(config.store_dir)
        with module.report(f"Encoding part {work}") as progress:
            build_token_store(
                folder,
                [item for item, key in items if key not in there],
                self.encode,
                key=self.encoder_hash,
                grid=config.data.grid,
                batch_size=module.encode_batch_size,
                num_workers=config.data.num_workers,
                progress=progress,
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
