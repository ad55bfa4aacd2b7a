"""Generation under control: strength 0 is the base, a sample is its own, and what cannot be made is refused."""

import numpy as np
import pytest
import torch

from prod9.config.schema import (
    ControlConditionConfig,
    ControlNetMaskGiTModelConfig,
    FSQModelConfig,
    LabelConditionalModelConfig,
)
from prod9.errors import ConfigError
from prod9.models.factory import ModelFactory
from prod9.pipelines.control import ControlPipeline
from prod9.pipelines.maskgit import GeneratedVolume
from prod9.pipelines.segmentation import PlacedSegmentation
from tests.pipelines.test_maskgit import build as build_base

GRID = (8, 12, 8)


def build(condition_type: str = "both", **control: float) -> ControlPipeline:
    generator = build_base(GRID, order="halton")
    torch.manual_seed(1)
    controlnet = ModelFactory.create_controlnet(
        ControlNetMaskGiTModelConfig(channels=(4,)),
        ControlConditionConfig(condition_type=condition_type),
        base=deepen(generator.decoder),
        base_model=LabelConditionalModelConfig(embed_dim=16, num_blocks=2, num_heads=2),
        autoencoder=FSQModelConfig(
            levels=(5, 5), num_channels=(4, 4), num_res_blocks=(1, 1), norm_num_groups=2
        ),
    )
    for parameter in controlnet.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return ControlPipeline(generator=generator, controlnet=controlnet, **control)


def deepen(decoder: torch.nn.Module) -> torch.nn.Module:
    """Give the one-block base of the other test a second block: residuals come in pairs."""
    if len(decoder.blocks) == 1:
        from copy import deepcopy

        decoder.blocks.append(deepcopy(decoder.blocks[0]))
    return decoder


@pytest.fixture(scope="module")
def pipeline() -> ControlPipeline:
    return build()


@pytest.fixture(scope="module")
def seg() -> PlacedSegmentation:
    labels = np.zeros(GRID, dtype=np.uint8)
    labels[2:5, 3:7, 2:6] = 3
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [5, -7, 9]
    return PlacedSegmentation(labels, affine, "case", 0.0)


def draw(pipeline: ControlPipeline, seg: PlacedSegmentation | None, **kwargs: int) -> list[GeneratedVolume]:
    return list(pipeline.generate("T2", seg=seg, **{"num_samples": 3, "seed": 4, **kwargs}))


def test_strength_0_is_the_volume_of_the_base(seg: PlacedSegmentation) -> None:
    pipeline = build(control_strength=0.0)
    base = list(pipeline.generator.generate("T2", num_samples=3, seed=4))
    for controlled, plain in zip(draw(pipeline, seg), base, strict=True):
        np.testing.assert_array_equal(controlled.data, plain.data)
        assert (controlled.label, controlled.index, controlled.seed) == (plain.label, plain.index, plain.seed)


def test_control_steers_and_volumes_lie_where_the_segmentation_lies(
    pipeline: ControlPipeline, seg: PlacedSegmentation
) -> None:
    volumes = draw(pipeline, seg)
    other = PlacedSegmentation(np.flip(seg.seg, 1), seg.affine, "case", 0.0)
    base = list(pipeline.generator.generate("T2", num_samples=3, seed=4))
    for volume, plain, moved in zip(volumes, base, draw(pipeline, other), strict=True):
        np.testing.assert_array_equal(volume.affine, seg.affine)
        assert volume.data.shape == GRID
        assert not np.array_equal(volume.data, plain.data)
        assert not np.array_equal(volume.data, moved.data)


def test_a_volume_does_not_depend_on_its_batch(seg: PlacedSegmentation) -> None:
    pipeline = build(control_guidance_scale=0.5)
    alone = draw(pipeline, seg)
    for kwargs in ({"batch_size": 3}, {"start": 1, "num_samples": 2, "batch_size": 2}):
        for volume in draw(pipeline, seg, **kwargs):
            np.testing.assert_allclose(volume.data, alone[volume.index].data, atol=1e-5)


def test_a_label_alone_needs_no_segmentation(seg: PlacedSegmentation) -> None:
    pipeline = build("label")
    volume = draw(pipeline, None, num_samples=1)[0]
    np.testing.assert_array_equal(volume.affine, pipeline.generator.affine)
    with pytest.raises(ConfigError, match="expected no segmentation"):
        draw(pipeline, seg)


def test_what_cannot_be_generated_is_refused(pipeline: ControlPipeline, seg: PlacedSegmentation) -> None:
    with pytest.raises(ConfigError, match=r"expected a segmentation.*pass --seg"):
        draw(pipeline, None)
    with pytest.raises(ConfigError, match="T1, FLAIR, T2, got 'PET'"):
        pipeline.generate("PET", seg=seg, num_samples=1)
    with pytest.raises(ValueError, match="at least"):
        draw(pipeline, seg, num_samples=0)


def test_progress_counts_to_the_end(pipeline: ControlPipeline, seg: PlacedSegmentation) -> None:
    seen: list[float] = []
    list(
        pipeline.generate(
            "T1", seg=seg, num_samples=3, batch_size=2, progress=lambda done, _: seen.append(done)
        )
    )
    assert seen == sorted(seen)
    assert seen[-1] == 3.0
