"""BraTSLabelConditionalDataModule: tokens and modality labels for stage 2a."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from prod9.config.schema import TransformerConfig
from prod9.data.datasets.tokens import LabelledTokens
from prod9.data.splits import Part, Split
from prod9.data.stores.latents import Encode, ParallelEncode
from prod9.training.data.brats import AbstractBraTSDataModule
from prod9.training.data.module import Progress
from prod9.training.data.tokens import BraTSTokens


class BraTSLabelConditionalDataModule(AbstractBraTSDataModule):
    """Tokens of whole volumes with the class of their modality, which the file names tell.

    encode, indices_to_codes, encoder_hash, upstream_split: see
    :class:`~prod9.training.data.tokens.BraTSTokens`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        encode: Encode | ParallelEncode | None = None,
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
        return self._with_regions(part, _LabelConditionalDataset(store=store, codebook=codebook))


class _LabelConditionalDataset(LabelledTokens):
    """Tokens and modality label of each volume: ``{label, target_latent, target_indices, …}``."""
