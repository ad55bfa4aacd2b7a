"""BraTSDiffusionDataModule: latents, modality labels and spacing for stages 2 and 3 of MAISI."""

from collections.abc import Sequence

import numpy as np

from prod9.config.schema import CovariatesConfig, MaisiControlNetConfig, MaisiDiffusionConfig
from prod9.data.datasets.latents import LatentDataset, SourceImages
from prod9.data.splits import Part
from prod9.training.data.brats import AbstractBraTSDataModule
from prod9.training.data.covariates import read_covariates
from prod9.training.data.encoded import EncodedSource


class BraTSDiffusionDataModule(AbstractBraTSDataModule):
    """Mean latents of whole volumes with the class of their modality, which the file names give.

    Args:
        config: of the run.
        encoded: the autoencoder of the latents.
        source_images: modalities whose images stand beside the latents, for stage 3; none by default.
        averages: the mean latent of those modalities stands beside them, too.
        covariates: of the patients; none by default.
    """

    def __init__(
        self,
        config: MaisiDiffusionConfig | MaisiControlNetConfig,
        *,
        encoded: EncodedSource,
        source_images: Sequence[str] = (),
        averages: bool = False,
        covariates: CovariatesConfig | None = None,
    ) -> None:
        super().__init__(config, reads_images=bool(source_images), progress=encoded.progress)
        self._encoded = encoded
        self._source_images = tuple(source_images)
        self._averages = averages
        self._covariates = covariates

    def build_dataset(self, part: Part) -> LatentDataset | SourceImages:
        """Return the encoded volumes of the patients of ``part``."""
        store = self._encoded.open(self, part)
        cases = [store.describe(index)["case_id"] for index in range(len(store))]
        known = read_covariates(self._covariates, cases)
        latents = LatentDataset(store, spacing=self.spacing, covariates=known)
        if not self._source_images:
            return latents
        order = self.config.data.modalities
        slots = [order.index(name) for name in self._source_images]
        return SourceImages(
            latents, self._cache(part), modalities=order, slots=slots, averages=self._averages
        )

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between voxels of the grid along each axis."""
        return tuple(np.linalg.norm(np.asarray(self.reference_affine)[:3, :3], axis=0).tolist())

    @property
    def latent_std(self) -> float:
        """Deviation of all latent values of the training part, mirrored copies included."""
        dataset = self._dataset("train")
        assert isinstance(dataset, LatentDataset)
        return dataset.store.latent_std()
