"""BraTSRefinerDataModule: translations of the scans of a cohort, with their sources and the scans themselves."""

from prod9.config.schema import RefinerConfig
from prod9.system.progress import Progress
from prod9.training.data.soft import AbstractTranslationsDataModule
from prod9.training.data.soft import TranslatesScans as TranslatesScans


class BraTSRefinerDataModule(AbstractTranslationsDataModule):
    """The decoded translations that a refiner is trained on."""

    def __init__(
        self, config: RefinerConfig, *, translator: TranslatesScans, progress: Progress | None = None
    ) -> None:
        super().__init__(
            config, translator=translator, copies=config.translations.per_target, progress=progress
        )
