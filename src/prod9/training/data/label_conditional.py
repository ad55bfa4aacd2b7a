"""BraTSLabelConditionalDataModule: tokens and modality labels for stage 2a."""

from prod9.data.datasets.tokens import LabelledTokens
from prod9.data.splits import Part
from prod9.data.stores.latents import TokenStore
from prod9.training.data.covariates import measured_covariates, read_covariates
from prod9.training.data.tokens import AbstractBraTSTokenDataModule


class BraTSLabelConditionalDataModule(AbstractBraTSTokenDataModule):
    """Tokens of whole volumes with the class of their modality, which the file names give."""

    def build_samples(self, part: Part, store: TokenStore) -> LabelledTokens:
        """Return one sample per volume."""
        if self.config.covariates is not None and self.config.covariates.file is None:
            own, mirror = measured_covariates(self.config.covariates, self.lesions(part))
            return LabelledTokens(store=store, covariates=own, mirrored=mirror)
        cases = [store.describe(index)["case_id"] for index in range(len(store))]
        return LabelledTokens(store=store, covariates=read_covariates(self.config.covariates, cases))
