"""Reconstruction: what goes in is prepared as in training, and what comes out lies where it was."""

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from prod9.data.cases import Case
from prod9.data.transforms import Augmentation, IntensityScaling, TransformBuilder
from prod9.errors import DataError
from prod9.pipelines.reconstruction import ReconstructionPipeline
from prod9.types import AutoencoderOutput
from tests.fixtures import write_brats_tree

PERCENTILES = IntensityScaling(mode="percentile", lower=0.0, upper=99.5)


class _Mirror(nn.Module):
    """Stands in for the inference wrapper: the latent is nothing, and the reconstruction is what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = SimpleNamespace(downsampling_factor=4)
        self.seen = torch.zeros(())

    def forward(self, x: torch.Tensor) -> AutoencoderOutput:
        self.seen = x.clone()
        latent = torch.zeros(1, 3, *(side // 4 for side in x.shape[2:]))
        return AutoencoderOutput(reconstruction=x, latent=latent, z_mu=latent, tokens=latent[:, 0].long())


def build(
    grid: tuple[int, int, int] = (20, 20, 20),
    spacing: tuple[float, float, float] | None = None,
    intensity: IntensityScaling = PERCENTILES,
) -> tuple[ReconstructionPipeline, _Mirror]:
    mirror = _Mirror()
    return ReconstructionPipeline(autoencoder=mirror, spacing=spacing, grid=grid, intensity=intensity), mirror


@pytest.fixture
def case(tmp_path: Path) -> Path:
    return write_brats_tree(tmp_path, 1)[0]


def test_prepared_as_in_training(case: Path) -> None:
    path = case / f"{case.name}-t2w.nii.gz"
    for spacing in (None, (5.0, 5.0, 5.0)):
        augment = Augmentation(
            flip_prob=0.0, bias_field_prob=0.0, gamma_prob=0.0, scale_prob=0.0, affine_prob=0.0
        )
        builder = TransformBuilder(
            spacing=spacing, grid=(20, 20, 20), crop_size=None, intensity=PERCENTILES, augment=augment
        )
        scan = Case("a", "a", images={"T2": path}, seg=None, layout="brats2023", label_scheme="brats2023")
        trained_on = builder.build_preprocessing(["T2"]).place(scan)
        pipeline, mirror = build(spacing=spacing)
        result = pipeline.reconstruct(path)
        np.testing.assert_allclose(mirror.seen[0].numpy(), trained_on.images["T2"][None], atol=1e-5)
        np.testing.assert_allclose(result.grid_affine, trained_on.affine, atol=1e-4)


@pytest.mark.parametrize("grid", [(20, 20, 20), (4, 4, 4)])
def test_a_perfect_network_gives_the_file_back(case: Path, grid: tuple[int, int, int]) -> None:
    """Also where the head exceeds the grid: nothing is cut."""
    path = case / f"{case.name}-t1n.nii.gz"
    pipeline, _ = build(grid, intensity=IntensityScaling(mode="percentile", lower=0.0, upper=100.0))
    result = pipeline.reconstruct(path)
    image = nib.load(path)
    np.testing.assert_allclose(result.data, image.get_fdata(), atol=0.05)
    np.testing.assert_array_equal(result.header.affine, image.affine)


def test_fixed_intensity_range(case: Path) -> None:
    path = case / f"{case.name}-t1n.nii.gz"
    pipeline, mirror = build(intensity=IntensityScaling(mode="range", lower=0.0, upper=1000.0))
    data = nib.load(path).get_fdata()
    np.testing.assert_allclose(pipeline.reconstruct(path).data, data, atol=0.05)
    assert float(mirror.seen.max()) == pytest.approx(data.max() / 1000, abs=1e-5)


def test_empty_and_constant_volumes_are_refused(tmp_path: Path) -> None:
    pipeline, _ = build()
    for name, value in (("empty", 0), ("constant", 3)):
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(np.full((8, 8, 8), value, dtype=np.int16), np.eye(4)), path)
        with pytest.raises(DataError, match=name):
            pipeline.reconstruct(path)
