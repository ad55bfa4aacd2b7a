"""Generation: which sample is drawn depends on its seed alone, and the pipeline checks what it is asked."""

import numpy as np
import pytest
import torch

from prod9.config.schema import (
    FSQModelConfig,
    LabelConditionalModelConfig,
    MaskingConfig,
    SamplerConfig,
    SlidingWindowSection,
)
from prod9.data.intensity import IntensityScaling
from prod9.errors import ConfigError
from prod9.models.factory import ModelFactory
from prod9.pipelines.maskgit import GeneratedVolume, MaskGiTPipeline, derived_seed
from prod9.pipelines.placement import GridPlacement, head_of

LABELS = {"T1": 0, "T2": 2, "FLAIR": 1}


def build(grid: tuple[int, int, int] = (8, 12, 8), **sampler: object) -> MaskGiTPipeline:
    torch.manual_seed(0)
    model = FSQModelConfig(levels=(5, 5), num_channels=(4, 4), num_res_blocks=(1, 1), norm_num_groups=2)
    decoder = LabelConditionalModelConfig(embed_dim=16, num_blocks=1, num_heads=2)
    network = ModelFactory.create_transformer(decoder, levels=model.levels)
    torch.nn.init.normal_(network.head.weight)  # zero at the start: every token would be equally likely
    return MaskGiTPipeline(
        decoder=network,
        autoencoder=ModelFactory.create_inference_wrapper(
            ModelFactory.create_autoencoder(model), SlidingWindowSection()
        ),
        sampler=ModelFactory.create_sampler(SamplerConfig(steps=3, **sampler), MaskingConfig()),
        label_map=LABELS,
        grid=grid,
        affine=np.diag([2.0, 2.0, 2.0, 1.0]),
    )


@pytest.fixture(scope="module")
def pipeline() -> MaskGiTPipeline:
    return build()


def draw(pipeline: MaskGiTPipeline, **kwargs: int) -> list[GeneratedVolume]:
    return list(pipeline.generate("T1", **{"num_samples": 4, "seed": 10, **kwargs}))


def test_volumes_are_in_range_and_differ(pipeline: MaskGiTPipeline) -> None:
    volumes = draw(pipeline)
    assert [v.index for v in volumes] == [0, 1, 2, 3]
    assert [v.seed for v in volumes] == [10, 11, 12, 13]
    for volume in volumes:
        assert volume.data.shape == (8, 12, 8)
        assert volume.data.dtype == np.float32
        assert 0.0 <= volume.data.min() < volume.data.max() <= 1.0
        np.testing.assert_array_equal(volume.affine, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert not np.array_equal(volumes[0].data, volumes[1].data)


def test_what_was_trained_on_skull_stripped_scans_has_a_background_of_0() -> None:
    pipeline = build()
    decoded = draw(pipeline)
    intensity = IntensityScaling("percentile", lower=0.0, upper=99.5)
    pipeline.placement = GridPlacement(spacing=None, grid=pipeline.grid, intensity=intensity)
    for volume, whole in zip(draw(pipeline), decoded, strict=True):
        head = head_of(whole.data)
        assert 0.0 < head.mean() < 1.0, "the decoded volume should have a background"
        assert np.array_equal(volume.data > 0.0, head)
        assert np.allclose(volume.data[head], whole.data[head], atol=2e-5)
    pipeline.placement = GridPlacement(spacing=None, grid=pipeline.grid, intensity=intensity, crop=False)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(draw(pipeline), decoded, strict=True))
    assert not pipeline.is_stripped


@pytest.mark.parametrize("order", ["halton", "random", "confidence"])
def test_a_volume_does_not_depend_on_its_batch(order: str) -> None:
    pipeline = build(order=order)
    alone = draw(pipeline)
    for kwargs in ({"batch_size": 4}, {"batch_size": 3}, {"start": 2, "num_samples": 2, "batch_size": 2}):
        for volume in draw(pipeline, **kwargs):
            np.testing.assert_allclose(volume.data, alone[volume.index].data, atol=1e-5)
    again = draw(pipeline, seed=alone[3].seed, num_samples=1)[0]
    np.testing.assert_array_equal(again.data, alone[3].data)


def test_labels_share_no_noise(pipeline: MaskGiTPipeline) -> None:
    seeds = {derived_seed(seed, label) for seed in range(50) for label in range(4)}
    assert len(seeds) == 200
    assert derived_seed(7, 2) == derived_seed(7, 2) != derived_seed(7, 2, 0)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Untrained but for the head, which sees no label: only the noise could make these equal.
    one, other = (next(pipeline.generate(label, num_samples=1, seed=3)) for label in ("T1", "T2"))
    assert one.seed == other.seed == 3
    assert not np.array_equal(one.data, other.data)


def test_labels_by_name_and_number(pipeline: MaskGiTPipeline) -> None:
    assert pipeline.label_names() == ["T1", "FLAIR", "T2"]
    by_name = next(pipeline.generate("T2", num_samples=1))
    by_number = next(pipeline.generate(2, num_samples=1))
    assert by_name.label == by_number.label == "T2"
    np.testing.assert_array_equal(by_name.data, by_number.data)
    for label in ("PET", 3, -1, True):
        with pytest.raises(ConfigError, match=r"T1, FLAIR, T2, .*class labels: 0, 1, 2"):
            pipeline.generate(label, num_samples=1)


def test_arguments_are_checked_at_the_call(pipeline: MaskGiTPipeline) -> None:
    for bad in ({"num_samples": 0}, {"batch_size": 0}, {"start": -1}):
        with pytest.raises(ValueError, match="at least"):
            pipeline.generate("T1", **{"num_samples": 1, **bad})
    with pytest.raises(ValueError, match="downsampling factor 2"):
        build(grid=(8, 9, 8))


def test_progress_counts_to_the_end(pipeline: MaskGiTPipeline) -> None:
    seen: list[float] = []

    def progress(done: float, total: int) -> None:
        assert total == 3
        seen.append(done)

    list(pipeline.generate("T1", num_samples=3, batch_size=2, progress=progress))
    assert seen == sorted(seen)
    assert seen[-1] == 3.0
    assert len(seen) > 3, "it also moves while a volume is being sampled"
