"""The gain of caches over whole epochs, reading and training steps together, as a user runs them.

The demo's networks at their shipped sizes, on files of 240 × 240 × 155 voxels: the second epoch of stage 1, from the
cache, against the first, which reads and resamples NIfTI files; and an epoch of stage 2 from the token store against
one that encodes every volume anew. A ratio says how many times longer the epoch takes without the cache. Steps take
crops and batches of the shipped size, so the ratio of a larger network is nearer to 1.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import _harness
import nibabel as nib
import numpy as np
import torch
from _full_size import ready, step_of
from _shipped import Changes, config_of, recipe, unchanged
from torch.utils.data import DataLoader, Dataset

from prod9.data.builders import DatasetBuilder
from prod9.data.datasets.tokens import LabelledTokens
from prod9.data.layouts.find import find_cases
from prod9.data.preprocessing import dequantise
from prod9.data.stores.latents import Encoded, StoreItem, build_token_store, foreground_of
from prod9.data.transforms import Augmentation, IntensityScaling, TransformBuilder

SHAPE = (240, 240, 155)
KINDS = ("t1n", "t1c", "t2w", "t2f")
MODALITIES = ("T1", "T1ce", "T2", "FLAIR")
STAGE1, STAGE2 = "demo/stage1", "demo/stage2_label"


def write_cases(root: Path, number: int, shape: Sequence[int]) -> None:
    """Write skull-stripped heads of ``shape`` voxels of 1 mm."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    head = (axes[0] / 0.55) ** 2 + (axes[1] / 0.7) ** 2 + (axes[2] / 0.8) ** 2 <= 1
    for k in range(number):
        case = root / f"BraTS-GLI-{k:05d}-000"
        case.mkdir(parents=True)
        for kind in KINDS:
            data = np.where(head, rng.integers(200, 900, tuple(shape), dtype=np.int16), 0).astype(np.int16)
            nib.save(nib.Nifti1Image(data, np.eye(4)), case / f"{case.name}-{kind}.nii.gz")


def builder(data: Any, cache_dir: Path) -> DatasetBuilder:
    """Return the builder of a run with a disk cache. data: the section of its configuration."""
    transforms = TransformBuilder(
        spacing=data.spacing,
        grid=data.grid,
        crop_size=data.crop_size,
        intensity=IntensityScaling(**data.intensity.kwargs()),
        augment=Augmentation(**data.augment.kwargs()),
    )
    return DatasetBuilder(
        transforms=transforms, modalities=MODALITIES, label_map={name: k for k, name in enumerate(MODALITIES)},
        cache="disk", cache_dir=cache_dir, seed=0,
    )  # fmt: skip


class EncodedAnew(Dataset):
    """What a token store gives, encoded at every reading."""

    def __init__(self, items: list[StoreItem], encode: Callable[[torch.Tensor], Encoded]) -> None:
        self.items = items
        self.encode = encode

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the tokens of one volume."""
        item = self.items[index]
        x = item.load()[None]
        encoded = self.encode(x)
        names = {name: getattr(item, name) for name in ("label", "case_id", "modality", "flipped")}
        seen = foreground_of(x, encoded.latents.shape[2:])[0]
        return {"indices": encoded.tokens[0], "foreground": seen, **names}  # type: ignore[index]


class Training:
    """Training steps of a shipped configuration with an untrained network."""

    def __init__(self, name: str, changes: Changes) -> None:
        self.made = recipe(name, changes)
        self.optimizers = ready(self.made, lambda network: network.to(memory_format=torch.channels_last_3d))

    def epoch(self, dataset: Any, now: Callable[[], float]) -> float:
        """Return the seconds of reading every sample once and of a step on each batch."""
        loader: Iterable[Any] = DataLoader(dataset, batch_size=self.made.config.data.batch_size)
        began = now()
        for batch in loader:
            step_of(self.made, self.optimizers, batch, self.made.config.training.max_steps - 1)
        return now() - began


def items_of(cases: Any) -> Iterator[StoreItem]:
    """Yield every volume of the cases."""
    for i, case in enumerate(cases.cases):
        for k, modality in enumerate(MODALITIES):

            def load(i: int = i, k: int = k) -> torch.Tensor:
                return dequantise(cases[i].images[k])[None]

            yield StoreItem(case.case_id, modality, k, False, f"{i}{modality}", load)


def measure(bench: _harness.Bench, root: Path, number: int, changes: Changes = unchanged) -> None:
    """Time the epochs of both stages on the files in ``root``; changes: of every configuration."""
    now = _harness.CLOCKS[bench.clock]
    config: Any = config_of(STAGE1, changes)
    made, training = builder(config.data, root / "cache"), Training(STAGE1, changes)
    began = now()
    cases = made.build_cases(find_cases(root / "data"))
    cases.warm()
    reading = now() - began
    stage1 = made.build_brats_stage1(cases, train=True)
    epochs = [training.epoch(stage1, now) for _ in range(bench.runs)]
    bench.seconds |= {"stage 1, first epoch": reading + epochs[0], "stage 1, later epoch": min(epochs[1:])}
    bench.ratio("stage1_epoch", reading + epochs[0], min(epochs[1:]))

    network: Any = training.made.networks()["autoencoder"].eval()

    @torch.inference_mode()
    def encode(volumes: torch.Tensor) -> Encoded:
        z = network.encode(volumes)
        return Encoded(z, network.embed(network.quantize(z)))

    items, training = list(items_of(cases)), Training(STAGE2, changes)
    store = build_token_store(root / "store", items, encode, key="bench", grid=config.data.grid)
    anew: Any = EncodedAnew(items, encode)
    arms = {"anew": LabelledTokens(store=anew), "store": LabelledTokens(store=store)}
    times = {
        arm: min(training.epoch(dataset, now) for _ in range(bench.runs)) for arm, dataset in arms.items()
    }
    bench.seconds |= {f"stage 2, {arm}": seconds for arm, seconds in times.items()}
    bench.ratio("stage2_epoch", times["anew"], times["store"])
    bench.sizes |= {"cases": number, "grid": list(config.data.grid)}


def main() -> None:
    """Run the benchmark."""
    bench = _harness.start("bench_store", __doc__)
    bench.runs, number = 3, 2 if bench.quick else 6
    with tempfile.TemporaryDirectory() as folder:
        write_cases(Path(folder) / "data", number, SHAPE)
        measure(bench, Path(folder), number)
    bench.sizes |= {"files": list(SHAPE)}
    bench.report(["nibabel", "numpy"])


if __name__ == "__main__":
    main()
