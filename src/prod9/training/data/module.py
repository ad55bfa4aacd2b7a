"""AbstractDataModule: what every data module of prod9 has in common.

The samples of a training step are a pure function of the seed and the step (:mod:`prod9.data.sampling`), so
resuming needs only :meth:`AbstractDataModule.set_start_step`. One pass over the training loader is the whole
run. Create the Trainer with ``use_distributed_sampler=False``: the sampler already gives each rank its share.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from torch.utils.data import DataLoader, Dataset, Subset

from prod9.config.schema import RunConfig
from prod9.data.builders import DatasetBuilder
from prod9.data.sampling import StepBatchSampler
from prod9.data.splits import PARTS, Part, Split
from prod9.data.stores.cache import CacheMode
from prod9.data.stores.latents import StoreItem
from prod9.data.stores.segmentations import Segmentations
from prod9.data.transforms import Augmentation, IntensityScaling, TransformBuilder
from prod9.errors import ConfigError
from prod9.system.progress import Progress
from prod9.system.terminal import PlainColumn, PlainConsole

_NEEDED: Mapping[str, tuple[Part, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
_REMEDY = {
    "train": "add cases or raise data.split.train",
    "val": "raise data.split.val: the best checkpoint is picked on it",
    "test": "set data.split.test (0.15, say) and train in a new output_dir; "
    "val cannot stand in, since it is spent on model selection",
}


class AbstractDataModule(LightningDataModule, ABC):
    """Split, datasets and loaders of one run.

    Args:
        config: of the run.
        progress: called with (done, total) during long work; None draws a bar if ``trainer.progress`` is on.
    """

    takes_crops: ClassVar[bool] = False
    """Whether training uses random crops of ``data.crop_size``, and whole volumes in the last steps: stage 1."""

    def __init__(self, config: RunConfig, *, progress: Progress | None = None) -> None:
        super().__init__()
        self.config = config
        # All nodes share output_dir, as they do for checkpoints: the long work is done once for all of them.
        self.prepare_data_per_node = False
        self._progress = progress
        self._start_step = 0
        self._split: Split | None = None
        self._datasets: dict[Part, Dataset[dict[str, Any]]] = {}
        check_paths(config)

    # -- what subclasses define -------------------------------------------------------------------

    @abstractmethod
    def find_reference_affine(self) -> np.ndarray:
        """Return what :attr:`reference_affine` holds."""

    @abstractmethod
    def find_split(self) -> Split:
        """Find the data, check it and return its division; DataError or ConfigError if it cannot be used."""

    @abstractmethod
    def build_dataset(self, part: Part) -> Dataset[dict[str, Any]]:
        """Return the dataset of ``part``, ready for loader processes: caches warm, everything encoded."""

    def content_digests(self) -> dict[str, str]:
        """Return a digest by case that changes with its files, for the parts that a run reads; empty if unknown."""
        return {}

    # -- what they share --------------------------------------------------------------------------

    @property
    def crop_size(self) -> tuple[int, int, int] | None:
        """Voxels of a random training crop; None for whole volumes."""
        return self.config.data.crop_size if self.takes_crops else None

    @property
    def whole_steps(self) -> int:
        """Return how many of the last steps train on whole volumes, one per device."""
        if self.crop_size is None:
            return 0
        return round(self.config.data.whole_volume_fraction * self.config.training.max_steps)

    def noise_levels(self) -> dict[str, list[float]]:
        """Return quantiles of the noise levels of training scans by modality; nothing where that is not known."""
        return {}

    def lesions(self, part: Part) -> dict[str, dict[str, float]]:
        """Return what is measured of the lesion of each case of ``part``; nothing where volumes are no label maps."""
        del part
        return {}

    @cached_property
    def reference_affine(self) -> np.ndarray:
        """Affine of a volume on the grid, for generated volumes: 4×4, voxel → RAS mm, axis-aligned."""
        return self.find_reference_affine()

    @property
    def split(self) -> Split:
        """Return the division of the patients, which is found at first use."""
        if self._split is None:
            self._split = self.find_split()
        return self._split

    def set_start_step(self, step: int) -> None:
        """Let the next training loader begin with the batch of ``step``."""
        self._start_step = step

    def prepare_data(self) -> None:
        """Do the long work (caches on disk, encoding) once, so that ``setup`` of the other ranks finds it done."""
        stage = None if self.trainer is None else self.trainer.state.fn
        self.setup(None if stage is None else str(stage.value))

    def setup(self, stage: str | None = None) -> None:
        """Check everything and build the datasets that ``stage`` needs.

        ``stage`` is ``fit``, ``validate``, ``test``, or None for every part that has patients. Raises DataError or
        ConfigError when a part that is needed is empty.
        """
        if stage is None:
            needed: Sequence[Part] = [part for part in PARTS if getattr(self.split, part)]
        else:
            needed = _NEEDED[stage]
        for part in needed:
            if not getattr(self.split, part):
                raise ConfigError(
                    f"data.split.{part}: expected at least one patient in the {part} split, got none; "
                    f"{_REMEDY[part]}."
                )
        for part in needed:
            self._dataset(part)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the batches of the steps from the start step to ``training.max_steps``, for this rank."""
        trainer, dataset = self.trainer, self._dataset("train")
        sampler = StepBatchSampler(
            num_items=len(dataset),  # type: ignore[arg-type]  # all our datasets have a length
            batch_size=self.config.data.batch_size,
            num_steps=self.config.training.max_steps,
            seed=self.config.seed,
            start_step=self._start_step,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
            whole_steps=self.whole_steps,
        )
        return self._loader(dataset, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return whole volumes one by one, always the same ``data.max_val_volumes``, on every rank."""
        dataset, most = self._dataset("val"), self.config.data.max_val_volumes
        total = len(dataset)  # type: ignore[arg-type]
        if most is not None and most < total:
            drawn = np.random.default_rng(self.config.data.split.seed).permutation(total)[:most]
            dataset = Subset(dataset, sorted(drawn.tolist()))
        return self._loader(dataset, batch_size=1)

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return all whole volumes of the test patients one by one, on every rank."""
        return self._loader(self._dataset("test"), batch_size=1)

    def _dataset(self, part: Part) -> Dataset[dict[str, Any]]:
        if part not in self._datasets:
            self._datasets[part] = self.build_dataset(part)
        return self._datasets[part]

    def _loader(self, dataset: Dataset[dict[str, Any]], **how: Any) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            dataset,
            num_workers=self.config.data.num_workers,
            pin_memory=torch.cuda.is_available(),
            # Without its own generator, a loader draws from the global one, which training depends on.
            generator=torch.Generator().manual_seed(self.config.seed),
            **how,
        )

    @contextmanager
    def report(self, description: str) -> Iterator[Progress | None]:
        """Yield a callback (done, total) for long work: the caller's, one that draws a bar, or None."""
        if self._progress is not None or not self.config.trainer.progress:
            yield self._progress
            return
        columns = (
            PlainColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        console = PlainConsole(stderr=True)
        if not console.is_terminal and getattr(rank_zero_only, "rank", 0) in {0, None}:
            console.print(f"{description} …")
        with ProgressBar(*columns, transient=True, console=console) as bar:
            task = bar.add_task(description, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


class AbstractSegmentedDataModule(AbstractDataModule):
    """A data module of one dataset family: its volumes can be encoded, and stage 3 finds segmentations of them."""

    leak_remedy: ClassVar[str] = (
        "use the same data.split, or set data.split.file to the split.json of that run"
    )
    """What to do when another stage was trained on patients that are held out here."""
    encode_batch_size: ClassVar[int] = 1
    """Volumes that are encoded at a time."""

    @abstractmethod
    def store_items(self, part: Part) -> list[StoreItem]:
        """Return the volumes of ``part`` to encode: per case its images and then, if wanted, their mirror images."""

    @abstractmethod
    def build_segmentations(
        self, part: Part, *, directory: Path, num_classes: int, progress: Progress | None
    ) -> Segmentations:
        """Return the segmentations of ``part``, or what stands for them.

        Args:
            part: of the split.
            directory: where they are kept.
            num_classes: labels from 0 to ``num_classes - 1`` are accepted.
            progress: called with (done, total).
        """

    def require_held_out(self, other: Split | None, *, base: str) -> None:
        """Refuse to hold out patients on which ``base``, a run with the split ``other``, was trained (ConfigError)."""
        leaked = [] if other is None else self.split.trained_elsewhere(other)
        if leaked:
            raise ConfigError(
                f"data.split: expected patients to be held out in all stages, got {base} that was trained on "
                f"{len(leaked)} that this run holds out ({', '.join(leaked[:5])}); {self.leak_remedy}."
            )

    def mirrorings(self, part: Part) -> list[bool]:
        """Return whether each stored copy of a volume of ``part`` is mirrored (``data.store_flips``)."""
        return [False, True] if part == "train" and self.config.data.store_flips else [False]

    def make_builder(self, *, cache: CacheMode, cache_dir: Path | None) -> DatasetBuilder:
        """Return the builder of this run's datasets."""
        data = self.config.data
        return DatasetBuilder(
            transforms=TransformBuilder(
                spacing=data.spacing,
                grid=data.grid,
                crop_size=self.crop_size,
                intensity=IntensityScaling(**data.intensity.kwargs()),
                augment=Augmentation(**data.augment.kwargs()),
            ),
            modalities=data.modalities,
            label_map=data.label_map,
            cache=cache,
            cache_dir=cache_dir,
            seed=self.config.seed,
            num_workers=data.num_workers,
        )


def check_paths(config: RunConfig) -> None:
    """Refuse paths that still hold a variable, and data folders that would be written to (ConfigError)."""
    data = config.data
    paths = {
        "data.root": data.root,
        "output_dir": config.output_dir,
        "data.cache_dir": data.cache_dir,
        "data.store_dir": data.store_dir,
        "data.split.file": data.split.file,
    }
    for key, path in paths.items():
        if path is not None and "${" in path:
            raise ConfigError(
                f"{key}: expected a path, got {path!r} with a variable that was not filled in; set it."
            )
    root = Path(data.root).resolve()
    for key in ("output_dir", "data.cache_dir", "data.store_dir"):
        path = paths[key]
        if path is not None and Path(path).resolve().is_relative_to(root):
            raise ConfigError(
                f"{key}: expected a folder outside data.root ({data.root}), which is never written to, "
                f"got {path}; choose another."
            )
