"""The gain of caches, by whole epochs as a run takes them, training steps included.

Stage 2 from the token store against encoding on the fly, and stage 1 from the cache against the first epoch, from NIfTI
files of 240 × 240 × 155 voxels.
"""

import tempfile
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

import _harness
import nibabel as nib
import numpy as np
import torch
from torch import nn

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.data.builders import DatasetBuilder
from prod9.data.layouts.find import find_cases
from prod9.data.preprocessing import dequantise
from prod9.data.stores.cache import CaseCache
from prod9.data.stores.latents import Encoded, StoreItem, build_token_store
from prod9.data.transforms import Augmentation, IntensityScaling, TransformBuilder
from prod9.generator.condition import MaskGiTCondition
from prod9.generator.maskgit import MaskGiTScheduler
from prod9.generator.transformer import TransformerDecoder
from prod9.training.algorithms.transformer_trainer import TransformerTrainer

SHAPE = (240, 240, 155)
GRID = (144, 192, 144)
KINDS = ("t1n", "t1c", "t2w", "t2f")
MODALITIES = ("T1", "T1ce", "T2", "FLAIR")
LEVELS = (8, 8, 8, 6, 5)
STAGE1: dict[str, Any] = {
    "num_channels": (8, 16, 16), "num_res_blocks": (1, 1, 1), "norm_num_groups": 8, "space_to_depth": 2,
}  # fmt: skip
CROP = 64


def write_cases(root: Path, number: int) -> None:
    """Write skull-stripped heads of the size of the challenge's files."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij")
    head = (axes[0] / 0.55) ** 2 + (axes[1] / 0.7) ** 2 + (axes[2] / 0.8) ** 2 <= 1
    for k in range(number):
        case = root / f"BraTS-GLI-{k:05d}-000"
        case.mkdir()
        for kind in KINDS:
            data = np.where(head, rng.integers(200, 900, SHAPE, dtype=np.int16), 0).astype(np.int16)
            nib.save(nib.Nifti1Image(data, np.eye(4)), case / f"{case.name}-{kind}.nii.gz")


def builder(cache_dir: Path, *, crop: tuple[int, int, int] | None) -> DatasetBuilder:
    """Return the builder of a run with a disk cache."""
    off = {f"{name}_prob": 0.0 for name in ("flip", "bias_field", "gamma", "scale", "affine")}
    transforms = TransformBuilder(
        spacing=None,
        grid=GRID,
        crop_size=crop,
        intensity=IntensityScaling("percentile", 0.0, 99.5),
        augment=Augmentation(**off),
    )
    return DatasetBuilder(
        transforms=transforms,
        modalities=MODALITIES,
        label_map={name: k for k, name in enumerate(MODALITIES)},
        cache="disk",
        cache_dir=cache_dir,
        seed=0,
    )


def epoch(items: Sized, step: Callable[[Any], object]) -> float:
    """Return the seconds of one epoch: every item is read and trained on."""
    began = time.perf_counter()
    for k in range(len(items)):
        step(items[k])  # type: ignore[index]
    return time.perf_counter() - began


def trains(network: nn.Module, loss: Callable[[Any], torch.Tensor]) -> Callable[[Any], None]:
    """Return a training step of ``network`` on one item."""
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step(item: Any) -> None:
        loss(item).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def decoder_loss() -> tuple[nn.Module, Callable[[Any], torch.Tensor]]:
    """Return a transformer of the demo's size and its loss on the tokens of one volume."""
    torch.manual_seed(0)
    decoder = TransformerDecoder(levels=LEVELS, embed_dim=192, num_blocks=6, num_heads=6, patch_size=2)
    trainer = TransformerTrainer(decoder=decoder, scheduler=MaskGiTScheduler())
    generator, condition = torch.Generator().manual_seed(0), MaskGiTCondition(torch.tensor([0]))

    def loss(item: Any) -> torch.Tensor:
        return trainer.compute_losses(item["indices"][None], condition, generator=generator)["total"]

    return decoder, loss


def main() -> None:
    """Run the benchmark."""
    bench = _harness.start("bench_store", __doc__)
    number = 1 if bench.quick else 4
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "data").mkdir()
        write_cases(root / "data", number)
        made = builder(root / "cache", crop=None)
        cases = made.build_cases(find_cases(root / "data"))
        torch.manual_seed(0)
        network = AutoencoderFSQ(levels=LEVELS, **STAGE1).to(memory_format=torch.channels_last_3d)
        stage1_epochs(bench, made.build_brats_stage1(cases, train=False), network)
        stage2_epochs(bench, cases, network.eval(), root / "store")
    bench.sizes |= {"cases": number, "files": list(SHAPE), "grid": list(GRID), "crop": CROP}
    bench.runs = 3
    bench.report(["nibabel", "numpy"])


def stage1_epochs(bench: _harness.Bench, dataset: Any, network: AutoencoderFSQ) -> None:
    """Time the first epoch, which reads files, and the second, from the cache; a step sees a crop of each volume."""

    def loss(item: Any) -> torch.Tensor:
        crop = item["image"][None, :, :CROP, :CROP, :CROP].contiguous()
        return (network(crop).reconstruction - crop).abs().mean()

    step = trains(network.train(), loss)
    first, second = epoch(dataset, step), min(epoch(dataset, step) for _ in range(2))
    bench.seconds |= {"first epoch of stage 1": first, "second epoch of stage 1": second}
    bench.ratio("stage1_cached_epoch", first, second)


def stage2_epochs(bench: _harness.Bench, cases: CaseCache, network: AutoencoderFSQ, place: Path) -> None:
    """Time an epoch that encodes every volume, and one from the store; filling the store is apart."""

    @torch.inference_mode()
    def encode(volumes: torch.Tensor) -> Encoded:
        z = network.encode(volumes)
        return Encoded(z, network.embed(network.quantize(z)))

    items = [
        StoreItem(c.case_id, m, k, False, f"{i}{m}", lambda i=i, k=k: dequantise(cases[i].images[k])[None])
        for i, c in enumerate(cases.cases)
        for k, m in enumerate(MODALITIES)
    ]
    decoder, loss = decoder_loss()
    step = trains(decoder, loss)

    def step_on_the_fly(item: StoreItem) -> None:
        tokens = encode(item.load()[None]).tokens
        assert tokens is not None
        step({"indices": tokens[0].clone()})

    on_the_fly = epoch(items, step_on_the_fly)
    began = time.perf_counter()
    store = build_token_store(place, items, encode, key="bench", grid=GRID)
    filling = time.perf_counter() - began
    from_store = min(epoch(store, step) for _ in range(2))
    bench.seconds |= {
        "stage 2 on the fly": on_the_fly,
        "filling the store": filling,
        "stage 2 from the store": from_store,
    }
    bench.ratio("stage2_epoch", on_the_fly, from_store)


if __name__ == "__main__":
    main()
