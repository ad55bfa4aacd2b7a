"""Data modules on MedMNIST3D: volumes for stage 1; tokens with classes, examples or latents for stages 2 and 3."""

import hashlib
import logging
from pathlib import Path

import numpy as np

from prod9.config.schema import MaisiControlNetConfig, MaisiDiffusionConfig, RunConfig, TransformerConfig
from prod9.data.datasets.in_context import InContextDataset
from prod9.data.datasets.latents import LatentDataset
from prod9.data.datasets.medmnist import (
    CachedMedMNIST3DStage1Dataset,
    MedMNIST3DStage2Dataset,
    MedMNIST3DVolumes,
)
from prod9.data.foreground import ForegroundMasks
from prod9.data.layouts.medmnist import SHAPE_SETS, MedMNIST3DFile, is_published, open_medmnist3d
from prod9.data.preprocessing import dequantise
from prod9.data.splits import PARTS, Part, Split
from prod9.data.stores.latents import StoreItem
from prod9.files import sha256
from prod9.system.progress import Progress
from prod9.training.data.encoded import EncodedSource
from prod9.training.data.in_context import in_context_samples
from prod9.training.data.module import AbstractSegmentedDataModule

_LOG = logging.getLogger(__name__)


class AbstractMedMNIST3DDataModule(AbstractSegmentedDataModule):
    """One MedMNIST3D file, divided into parts as published."""

    leak_remedy = "train that run on the same file"
    encode_batch_size = 8

    def __init__(self, config: RunConfig, *, progress: Progress | None = None) -> None:
        super().__init__(config, progress=progress)
        data = config.data
        if data.kind != "medmnist3d":
            raise ValueError(
                f"data.kind: expected medmnist3d, got {data.kind}; use a data module of that family."
            )
        self._data = data
        self._file: MedMNIST3DFile | None = None
        self._builder = self.make_builder(cache=data.cache, cache_dir=None)

    def find_reference_affine(self) -> np.ndarray:
        """Return voxels of 1 mm centred on the origin, since the files give neither size nor place."""
        affine = np.eye(4)
        affine[:3, 3] = -(np.asarray(self._data.grid) - 1) / 2
        return affine

    def find_split(self) -> Split:
        """Open the file, after downloading it if the config asks for that, and return its own division."""
        with self.report(f"Downloading {self._data.name}") as progress:
            file = open_medmnist3d(
                Path(self._data.root),
                self._data.name,
                self._data.size,
                download=self._data.download,
                progress=progress,
            )
        if not is_published(file.path):
            _LOG.warning("%s is not the published file; its own counts are used.", file.path)
        if self._data.name in SHAPE_SETS:
            _LOG.warning("%s holds binary shapes, not images.", self._data.name)
        self._file = file
        return Split(*(tuple(file.identities(part)) for part in PARTS))

    def content_digests(self) -> dict[str, str]:
        """Return the hash of the file."""
        path = self._opened().path
        return {path.name: sha256(path)}

    def build_segmentations(
        self, part: Part, *, directory: Path, num_classes: int, progress: Progress | None
    ) -> ForegroundMasks:
        """Return the foreground of the samples of ``part``, found in the images: two classes, and nothing is kept.

        Args:
            part: ``train``, ``val`` or ``test``.
            directory: not used.
            num_classes: 2.
            progress: not called.
        """
        del directory, num_classes, progress  # the schema has made sure of two classes
        return ForegroundMasks(self._volumes(part), is_shape=self._data.name in SHAPE_SETS)

    def store_items(self, part: Part) -> list[StoreItem]:
        """Return the samples of ``part`` to encode, each followed by its mirror image."""
        volumes, labels = self._volumes(part), self._data.label_map
        content = sha256(self._opened().path)
        return [
            StoreItem(
                case_id=volumes.names[i],
                modality=volumes.class_name(i),
                label=labels[volumes.class_name(i)],
                flipped=flipped,
                content=hashlib.sha256(f"{content} {volumes.names[i]}".encode()).hexdigest(),
                load=lambda i=i: dequantise(volumes[i])[None],
            )
            for i in range(len(volumes))
            for flipped in self.mirrorings(part)
        ]

    def _opened(self) -> MedMNIST3DFile:
        _ = self.split  # opens the file
        assert self._file is not None
        return self._file

    def _volumes(self, part: Part) -> MedMNIST3DVolumes:
        file, classes = self._opened(), self._data.modalities
        images, labels = file.read(part, len(classes))
        return MedMNIST3DVolumes(images, labels, file.identities(part), classes, self._data.grid)


class MedMNIST3DDataModule(AbstractMedMNIST3DDataModule):
    """Volumes for stage 1."""

    takes_crops = True

    def build_dataset(self, part: Part) -> CachedMedMNIST3DStage1Dataset:
        """Return the volumes of ``part``."""
        return self._builder.build_medmnist3d_stage1(self._volumes(part), train=part == "train")


class MedMNIST3DLabelConditionalDataModule(AbstractMedMNIST3DDataModule):
    """Tokens with the class, for stage 2a of MaskGiT."""

    def __init__(self, config: TransformerConfig, *, encoded: EncodedSource) -> None:
        super().__init__(config, progress=encoded.progress)
        self._encoded = encoded

    def build_dataset(self, part: Part) -> MedMNIST3DStage2Dataset:
        """Return the encoded samples of ``part``."""
        return self._builder.build_medmnist3d_stage2(self._encoded.open(self, part))


class MedMNIST3DInContextDataModule(AbstractMedMNIST3DDataModule):
    """Tokens with examples of the same class, for stage 2b of MaskGiT."""

    def __init__(self, config: TransformerConfig, *, encoded: EncodedSource) -> None:
        super().__init__(config, progress=encoded.progress)
        self.config: TransformerConfig = config
        self._encoded = encoded

    def build_dataset(self, part: Part) -> InContextDataset:
        """Return the encoded samples of ``part``."""
        store, volumes = self._encoded.open(self, part), self._volumes(part)
        return in_context_samples(
            self.config, self._encoded, store, patients=volumes.names, groups=volumes.labels.tolist()
        )


class MedMNIST3DFlowDataModule(AbstractMedMNIST3DDataModule):
    """Latents with the class, for stages 2 and 3 of MAISI."""

    def __init__(
        self, config: MaisiDiffusionConfig | MaisiControlNetConfig, *, encoded: EncodedSource
    ) -> None:
        super().__init__(config, progress=encoded.progress)
        self._encoded = encoded

    def build_dataset(self, part: Part) -> LatentDataset:
        """Return the encoded samples of ``part``."""
        return LatentDataset(self._encoded.open(self, part), spacing=(1.0, 1.0, 1.0))

    @property
    def latent_std(self) -> float:
        """Deviation of all latent values of the training part, mirrored copies included."""
        dataset = self._dataset("train")
        assert isinstance(dataset, LatentDataset)
        return dataset.store.latent_std()
