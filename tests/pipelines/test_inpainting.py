"""Inpainting: outside of the region nothing changes, inside it no old value survives, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prod9 import volumes
from prod9.config.schema import (
    FSQModelConfig,
    LabelConditionalModelConfig,
    MaskingConfig,
    SamplerConfig,
    SlidingWindowSection,
)
from prod9.data.transforms import IntensityScaling
from prod9.errors import ConfigError, DataError
from prod9.models.factory import ModelFactory
from prod9.pipelines.inpainting import InpaintingPipeline, storage_dtype, touched_tokens
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.pipelines.placement import GridPlacement
from prod9.volumes import VolumeFile
from tests.fixtures import write_brats_tree

GRID = (20, 24, 16)


def build(spacing: tuple[float, float, float] | None = None, **kwargs: Any) -> InpaintingPipeline:
    torch.manual_seed(0)
    model = FSQModelConfig(levels=(5, 5), num_channels=(4, 4), num_res_blocks=(1, 1), norm_num_groups=2)
    decoder = LabelConditionalModelConfig(embed_dim=16, num_blocks=1, num_heads=2)
    network = ModelFactory.create_transformer(decoder, levels=model.levels)
    torch.nn.init.normal_(network.head.weight)
    generator = MaskGiTPipeline(
        decoder=network,
        autoencoder=ModelFactory.create_inference_wrapper(
            ModelFactory.create_autoencoder(model), SlidingWindowSection()
        ),
        sampler=ModelFactory.create_sampler(SamplerConfig(steps=3, order="random"), MaskingConfig()),
        label_map={"T1": 0, "T1ce": 1, "T2": 2, "FLAIR": 3},
        grid=GRID,
        affine=np.eye(4),
        placement=GridPlacement(
            spacing=spacing, grid=GRID, intensity=IntensityScaling(mode="percentile", lower=0.5, upper=99.5)
        ),
    )
    return InpaintingPipeline(generator=generator, **kwargs)


@pytest.fixture(scope="module")
def pipeline() -> InpaintingPipeline:
    return build()


@pytest.fixture
def source(tmp_path: Path) -> VolumeFile:
    (case,) = write_brats_tree(tmp_path, 1)
    return volumes.read(case / f"{case.name}-t1n.nii.gz")


def region_of(source: VolumeFile, *slices: slice) -> VolumeFile:
    data = np.zeros(source.header.shape, np.float32)
    data[slices] = 1
    return VolumeFile(data, replace(source.header, path=Path("region.nii.gz")))


@pytest.fixture
def region(source: VolumeFile) -> VolumeFile:
    return region_of(source, slice(6, 10), slice(6, 11), slice(5, 9))


def draw(pipeline: InpaintingPipeline, source: VolumeFile, region: VolumeFile, **kwargs: Any) -> list[Any]:
    return list(pipeline.inpaint(source, region, "T1", **{"num_samples": 3, "seed": 5, **kwargs}))


@pytest.mark.parametrize("spacing", [None, (3.0, 3.0, 3.0)])
@pytest.mark.parametrize("blend", [0.0, 2.0])
def test_outside_the_region_nothing_changes(
    source: VolumeFile, region: VolumeFile, spacing: tuple[float, float, float] | None, blend: float
) -> None:
    samples = draw(build(spacing, blend=blend), source, region)
    where = region.data != 0
    for k, sample in enumerate(samples):
        assert (sample.index, sample.seed) == (k, 5 + k)
        assert sample.data.dtype == np.float32
        assert np.array_equal(sample.data[~where], source.data[~where])
        assert not np.array_equal(sample.data[where], source.data[where])
        assert np.isfinite(sample.data).all()
        head = source.data[source.data != 0]
        assert sample.data[where].min() >= head.min() - 1
        assert sample.data[where].max() <= head.max() + 1
    assert not np.array_equal(samples[0].data, samples[1].data)


def test_what_was_inside_leaves_no_trace(
    pipeline: InpaintingPipeline, source: VolumeFile, region: VolumeFile
) -> None:
    where = region.data != 0
    void, lesion = source.data.copy(), source.data.copy()
    void[where], lesion[where] = 0.0, 3000.0
    one, other, original = (
        draw(pipeline, VolumeFile(data, source.header), region)[0].data
        for data in (void, lesion, source.data)
    )
    assert np.array_equal(one[where], other[where])
    assert np.array_equal(one[where], original[where])


def test_a_sample_does_not_depend_on_its_batch(
    pipeline: InpaintingPipeline, source: VolumeFile, region: VolumeFile
) -> None:
    alone = draw(pipeline, source, region)
    together = draw(pipeline, source, region, batch_size=3)
    (later,) = draw(pipeline, source, region, start=2, num_samples=1)
    (again,) = draw(pipeline, source, region, seed=alone[1].seed, num_samples=1)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.data, other.data, atol=0.05)
    np.testing.assert_allclose(later.data, alone[2].data, atol=0.05)
    assert np.array_equal(again.data, alone[1].data)


def test_only_tokens_that_touch_the_region_are_drawn(
    pipeline: InpaintingPipeline, source: VolumeFile, region: VolumeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    inner = MaskGiTPipeline.sample_tokens

    def spy(self: MaskGiTPipeline, condition: Any, **kwargs: Any) -> torch.Tensor:
        tokens = inner(self, condition, **kwargs)
        seen.append({**kwargs, "tokens": tokens})
        return tokens

    monkeypatch.setattr(MaskGiTPipeline, "sample_tokens", spy)
    for margin in (0, 1):
        draw(build(margin=margin), source, region, num_samples=1)
    few, more = (call["initial_mask"] for call in seen)
    assert 0 < few.sum() < more.sum() < more.numel()
    assert not (few & ~more).any()
    for call in seen:
        kept = ~call["initial_mask"]
        assert torch.equal(call["tokens"][kept], call["initial_tokens"][kept])


def test_a_token_is_touched_by_any_part_of_a_voxel() -> None:
    region = np.zeros((6, 6, 6), bool)
    region[2, 3, 4] = True
    # Tokens of 2 voxels; the grid begins one voxel before the file.
    grid_affine = np.eye(4)
    grid_affine[:3, 3] = -1
    touched = touched_tokens(region, np.eye(4), grid_affine, 2, (4, 4, 4))
    assert np.argwhere(touched).tolist() == [[1, 2, 2]]
    # A voxel of 3 mm overlaps two tokens an axis wherever it lies across their border.
    wide = np.zeros((2, 2, 2), bool)
    wide[1, 1, 1] = True
    assert touched_tokens(wide, np.diag([3.0, 3, 3, 1]), np.eye(4), 2, (4, 4, 4)).sum() == 8
    assert not touched_tokens(region, np.eye(4), np.diag([1.0, 1, 1, 1]), 2, (1, 1, 1)).any()


def test_the_border_is_levelled_to_its_surroundings(source: VolumeFile, region: VolumeFile) -> None:
    where = region.data != 0
    shell = where & ~np.roll(where, 1, 0) & (np.roll(source.data, 1, 0) != 0)
    sharp, soft = (draw(build(blend=blend), source, region, num_samples=1)[0].data for blend in (0.0, 3.0))
    # An untrained decoder misses the level of the brain by far.
    jump_sharp, jump_soft = (
        abs(float((data[shell] - np.roll(data, 1, 0)[shell]).mean())) for data in (sharp, soft)
    )
    assert jump_soft < 0.8 * jump_sharp


def test_regions_that_cannot_be_drawn_are_refused(pipeline: InpaintingPipeline, source: VolumeFile) -> None:
    header = source.header

    def refused(region: VolumeFile, message: str, **kwargs: Any) -> None:
        with pytest.raises(DataError, match=message):
            draw(pipeline, source, region, **kwargs)

    refused(region_of(source, slice(0, 0)), "region to draw anew, got none")
    refused(region_of(source, slice(None)), "got all of them")
    refused(region_of(source, slice(0, 1), slice(0, 1), slice(0, 1)), "region in the head")
    smaller = VolumeFile(
        np.ones((3, 3, 3), np.float32), replace(header, path=Path("small.nii.gz"), shape=(3, 3, 3))
    )
    refused(smaller, r"small\.nii\.gz: expected the voxel grid")
    assert draw(pipeline, source, _moved(smaller, [6.0, 6.0, 5.0]), resample=True)
    refused(_moved(smaller, [14.0, 6.0, 5.0]), "outside of the volume", resample=True)


def _moved(file: VolumeFile, voxels: list[float]) -> VolumeFile:
    affine = file.header.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.asarray(voxels)
    return VolumeFile(file.data, replace(file.header, affine=affine))


def test_a_region_beyond_the_models_grid_is_refused(source: VolumeFile) -> None:
    pipeline = build()
    assert pipeline.generator.placement is not None
    pipeline.generator.placement = GridPlacement(
        spacing=None, grid=(4, 4, 4), intensity=pipeline.generator.placement.intensity
    )
    with pytest.raises(DataError, match="within the model's grid"):
        draw(pipeline, source, region_of(source, slice(6, 9), slice(4, 5), slice(5, 9)))


def test_unknown_labels_and_missing_control_are_refused(
    pipeline: InpaintingPipeline, source: VolumeFile, region: VolumeFile
) -> None:
    with pytest.raises(ConfigError, match="T1, T1ce, T2, FLAIR"):
        pipeline.inpaint(source, region, "PET")
    with pytest.raises(ConfigError, match="--control RUN"):
        pipeline.inpaint(source, region, "T1", seg=region)
    with pytest.raises(ValueError, match="at least"):
        build(margin=-1)


def test_files_keep_their_integers(source: VolumeFile) -> None:
    assert source.header.dtype == np.int16
    assert storage_dtype(source) == np.int16
    scaled = VolumeFile(source.data * 0.5 + 0.25, source.header)
    assert storage_dtype(scaled) == np.float32
    beyond = VolumeFile(source.data + 40_000, source.header)
    assert storage_dtype(beyond) == np.float32
