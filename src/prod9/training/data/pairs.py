"""BraTSTranslationDataModule: pairs of modalities for stage 2 of kind ``decoder``."""

from prod9.config.schema import TransformerConfig
from prod9.data.datasets.pairs import TranslationPairs
from prod9.data.splits import Part
from prod9.data.stores.latents import TokenStore
from prod9.errors import ConfigError
from prod9.training.data.encoded import EncodedSource
from prod9.training.data.tokens import AbstractBraTSTokenDataModule


class BraTSTranslationDataModule(AbstractBraTSTokenDataModule):
    """Tokens of a target modality and codes of a source modality of the same case."""

    def __init__(self, config: TransformerConfig, *, encoded: EncodedSource) -> None:
        super().__init__(config, encoded=encoded)
        if len(config.data.modalities) < 2:
            raise ConfigError(
                "data.modalities: expected at least two to translate between, "
                f"got {', '.join(config.data.modalities)}; add one, or use model.kind label_conditional."
            )

    def build_samples(self, part: Part, store: TokenStore) -> TranslationPairs:
        """Return one sample per target volume."""
        return TranslationPairs(
            store=store,
            codebook=self._encoded.codebook(store),
            num_modalities=len(self.config.data.modalities),
            seed=self.config.seed,
        )
