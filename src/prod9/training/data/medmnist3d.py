"""MedMNIST3DDataModule: MedMNIST3D for every stage: volumes, tokens or latents with class labels, examples, masks."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prod9.config.schema import (
    MaisiControlNetConfig,
    MaisiDiffusionConfig,
    MedMNIST3DDataConfig,
    RunConfig,
    Stage1Config,
    TransformerConfig,
)
from prod9.data.builders import DatasetBuilder
from prod9.data.datasets.medmnist import MedMNIST3DVolumes
from prod9.data.foreground import ForegroundMasks
from prod9.data.layouts.medmnist import SHAPE_SETS, MedMNIST3DFile, is_published, open_medmnist3d
from prod9.data.preprocessing import dequantise
from prod9.data.splits import PARTS, Part, Split
from prod9.data.stores.latents import (
    Encode,
    ParallelEncode,
    StoreItem,
    TokenStore,
    build_token_store,
    find_in_store,
)
from prod9.data.transforms import Augmentation, IntensityScaling, TransformBuilder
from prod9.errors import ConfigError
from prod9.files import sha256
from prod9.training.data.flow import LatentDataset
from prod9.training.data.in_context import InContextDataset
from prod9.training.data.module import AbstractSegmentedDataModule, Progress

_LOG = logging.getLogger(__name__)


class MedMNIST3DDataModule(AbstractSegmentedDataModule):
    """One MedMNIST3D file, divided as its makers did.

    Stage 1 gives volumes; stage 2 encodes them once and gives tokens with the class, with examples of the class too
    (kind ``single_stream``), or latents (MAISI). encode, indices_to_codes, encoder_hash, upstream_split: for stage 2,
    as in :class:`~prod9.training.data.tokens.BraTSTokens`.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        encode: Encode | ParallelEncode | None = None,
        indices_to_codes: Callable[[Tensor], Tensor] | None = None,
        encoder_hash: str | None = None,
        upstream_split: Split | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(config, progress=progress)
        data = config.data
        if not isinstance(data, MedMNIST3DDataConfig):
            raise ValueError(f"MedMNIST3DDataModule needs data.kind medmnist3d, got {data.kind}.")
        self._data = data
        self._encode = encode
        self._indices_to_codes = indices_to_codes
        self._encoder_hash = encoder_hash
        self._upstream_split = upstream_split
        self._file: MedMNIST3DFile | None = None
        self._builder = DatasetBuilder(
            transforms=TransformBuilder(
                spacing=None,
                grid=data.grid,
                crop_size=data.crop_size if isinstance(config, Stage1Config) else None,
                intensity=IntensityScaling(**data.intensity.kwargs()),
                augment=Augmentation(**data.augment.kwargs()),
            ),
            modalities=data.modalities,
            label_map=data.label_map,
            cache="memory",
            cache_dir=None,
            seed=config.seed,
        )

    def find_reference_affine(self) -> np.ndarray:
        """Return voxels of 1 mm centred on the origin: the files say neither size nor place."""
        affine = np.eye(4)
        affine[:3, 3] = -(np.asarray(self._data.grid) - 1) / 2
        return affine

    def find_split(self) -> Split:
        """Open the file, fetching it if the config asks for that, and return its own division."""
        with self._report(f"Fetching {self._data.name}") as progress:
            self._file = open_medmnist3d(
                Path(self._data.root), self._data.name, self._data.size, download=self._data.download,
                progress=progress,
            )  # fmt: skip
        if not is_published(self._file.path):
            _LOG.warning("%s is not the published file; its own counts are used.", self._file.path)
        if self._data.name in SHAPE_SETS:
            _LOG.warning("%s holds binary shapes, not images.", self._data.name)
        split = Split(*(tuple(self._file.identities(part)) for part in PARTS))
        self._check_leak(split)
        return split

    def content_digests(self) -> dict[str, str]:
        """Return the hash of the file."""
        _ = self.split  # opens the file
        assert self._file is not None
        return {self._file.path.name: sha256(self._file.path)}

    @property
    def whole_steps(self) -> int:
        """Return how many of the last steps of stage 1 train on whole volumes."""
        if self._data.crop_size is None or self._encode is not None:
            return 0
        return round(self._data.whole_volume_fraction * self.config.training.max_steps)

    def build_dataset(self, part: Part) -> Dataset[dict[str, Any]]:
        """Return the volumes of ``part`` (stage 1), their tokens or their latents (stage 2)."""
        volumes, config = self._volumes(part), self.config
        if self._encode is None:
            return self._builder.build_medmnist3d_stage1(volumes, train=part == "train")
        store = self._build_store(part, volumes)
        if isinstance(config, MaisiDiffusionConfig | MaisiControlNetConfig):
            return LatentDataset(store, spacing=(1.0, 1.0, 1.0))
        assert self._indices_to_codes is not None
        indices = torch.arange(store.max_index + 1)[None, :, None, None]
        codebook = self._indices_to_codes(indices)[0, :, :, 0, 0].detach().float().cpu()
        if isinstance(config, TransformerConfig) and config.model.kind == "single_stream":
            return InContextDataset(
                store,
                codebook,
                patients=volumes.names,
                num_modalities=self._data.images_per_case,
                settings=config.in_context,
                seed=config.seed,
                groups=volumes.labels.tolist(),
            )
        return self._builder.build_medmnist3d_stage2(store, codebook)

    def build_segmentations(
        self, part: Part, *, directory: Path, num_classes: int, progress: Progress | None
    ) -> ForegroundMasks:
        """Return the foreground of the samples of ``part``: two classes, made from the images in memory."""
        del directory, num_classes, progress  # nothing is read or kept, and the schema knows of two classes
        return ForegroundMasks(self._volumes(part), is_shape=self._data.name in SHAPE_SETS)

    @property
    def latent_std(self) -> float:
        """Deviation of all latent values of the training part, mirrored copies included."""
        dataset = self._dataset("train")
        assert isinstance(dataset, LatentDataset)
        return dataset.store.latent_std()

    def _build_store(self, part: Part, volumes: MedMNIST3DVolumes) -> TokenStore:
        """Return the encoded samples of ``part``, encoding what the store lacks."""
        assert self._encode is not None
        assert self._encoder_hash is not None
        directory = self.config.store_dir
        items = self._items(volumes, mirrored=part == "train" and self._data.store_flips)
        where = {"key": self._encoder_hash, "grid": self._data.grid}
        store = find_in_store(directory, items, **where)
        if store is None:
            with self._report(f"Encoding {part} volumes") as progress:
                store = build_token_store(
                    directory,
                    items,
                    self._encode,
                    **where,
                    batch_size=8,
                    num_workers=self._data.num_workers,
                    progress=progress,
                    overwrite=self._data.store_dir is None,
                )
        return store

    def _volumes(self, part: Part) -> MedMNIST3DVolumes:
        _ = self.split  # opens the file
        assert self._file is not None
        classes = self._data.modalities
        images, labels = self._file.read(part, len(classes))
        return MedMNIST3DVolumes(images, labels, self._file.identities(part), classes, self._data.grid)

    def _items(self, volumes: MedMNIST3DVolumes, *, mirrored: bool) -> list[StoreItem]:
        assert self._file is not None
        content, labels = sha256(self._file.path), self._data.label_map
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
            for flipped in ([False, True] if mirrored else [False])
        ]

    def _check_leak(self, split: Split) -> None:
        leaked = [] if self._upstream_split is None else split.trained_elsewhere(self._upstream_split)
        if leaked:
            raise ConfigError(
                "inputs.autoencoder: expected one that was not trained on samples held out here, got one trained on "
                f"{len(leaked)} of them ({leaked[0]}, …); train it on the same file."
            )
