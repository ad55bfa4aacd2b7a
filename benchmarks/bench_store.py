"""The gain of caches: an epoch of stage 2 from the token store against encoding on the fly, and the second epoch of
stage 1, from the cache, against the first, from NIfTI files of 240 × 240 × 155 voxels.
"""

import tempfile
import time
from pathlib import Path

import _harness
import nibabel as nib
import numpy as np
import torch

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.data.builders import DatasetBuilder
from prod9.data.layouts.find import find_cases
from prod9.data.preprocessing import dequantise
from prod9.data.stores.latents import Encoded, StoreItem, build_token_store
from prod9.data.transforms import Augmentation, IntensityScaling, TransformBuilder

SHAPE = (240, 240, 155)
GRID = (144, 192, 144)
KINDS = ("t1n", "t1c", "t2w", "t2f")
MODALITIES = ("T1", "T1ce", "T2", "FLAIR")


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


def timed(items: object) -> float:
    """Return the seconds that one pass over a dataset takes."""
    began = time.perf_counter()
    for k in range(len(items)):  # type: ignore[arg-type]
        items[k]  # type: ignore[index]
    return time.perf_counter() - began


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
        stage1 = made.build_brats_stage1(cases, train=False)
        first, second = timed(stage1), min(timed(stage1) for _ in range(3))
        bench.seconds |= {"first epoch of stage 1": first, "second epoch of stage 1": second}
        bench.ratio("stage1_cached_epoch", first, second)

        network = AutoencoderFSQ(
            levels=(8, 8, 8, 6, 5), num_channels=(8, 16, 16), num_res_blocks=(1, 1, 1), norm_num_groups=8,
            space_to_depth=2,
        ).eval()  # fmt: skip

        @torch.inference_mode()
        def encode(volumes: torch.Tensor) -> Encoded:
            z = network.encode(volumes)
            return Encoded(z, network.embed(network.quantize(z)))

        items = [
            StoreItem(
                c.case_id, m, k, False, f"{i}{m}", lambda i=i, k=k: dequantise(cases[i].images[k])[None]
            )
            for i, c in enumerate(cases.cases)
            for k, m in enumerate(MODALITIES)
        ]
        began = time.perf_counter()
        for item in items:
            encode(item.load()[None])
        on_the_fly = time.perf_counter() - began
        store = build_token_store(root / "store", items, encode, key="bench", grid=GRID)
        from_store = min(timed(store) for _ in range(3))
        bench.seconds |= {"stage 2 on the fly": on_the_fly, "stage 2 from the store": from_store}
        bench.ratio("stage2_epoch", on_the_fly, from_store)
    bench.sizes |= {"cases": number, "files": list(SHAPE), "grid": list(GRID)}
    bench.runs = 3
    bench.report(["nibabel", "numpy"])


if __name__ == "__main__":
    main()
