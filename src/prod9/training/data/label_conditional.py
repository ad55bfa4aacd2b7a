"""BraTSLabelConditionalDataModule: tokens and modality labels for stage 2a."""

from prod9.data.datasets.tokens import LabelledTokens
from prod9.data.splits import Part
from prod9.data.stores.latents import TokenStore
from prod9.training.data.tokens import AbstractBraTSTokenDataModule


class BraTSLabelConditionalDataModule(AbstractBraTSTokenDataModule):
    """Tokens of whole volumes with the class of their modality, which the file names give."""

    def build_samples(self, part: Part, store: TokenStore) -> LabelledTokens:
        """Return one sample per volume."""
        return LabelledTokens(store=store)
