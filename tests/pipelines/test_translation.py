"""TranslationPipeline: what decides a sample, what the mean and the deviation are, what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prod9.config.load import config_from_dict
from prod9.config.schema import FSQModelConfig, TransformerConfig
from prod9.errors import ConfigError
from prod9.generator.modality_processor import InContextCondition
from prod9.generator.refiner import Refined
from prod9.models.factory import ModelFactory
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.pipelines.translation import TranslationPipeline

LABELS = {"T1": 0, "T1ce": 1, "T2": 2, "FLAIR": 3}
GRID = (8, 12, 8)


def build(kind: str = "single_stream", refiner: Any = None, **context: Any) -> TranslationPipeline:
    values = {
        "stage": "transformer",
        "output_dir": "x",
        "data": {"root": "x", "grid": list(GRID)},
        "model": {"kind": kind, "embed_dim": 16, "num_blocks": 2, "num_heads": 2, "patch_size": 2},
        "sampler": {"steps": 3, "order": "random"},
        **({"context": context} if context else {}),
    }
    config = config_from_dict(values, source="test")
    assert isinstance(config, TransformerConfig)
    torch.manual_seed(0)
    stage1 = FSQModelConfig(levels=(5, 5), num_channels=(4, 4), num_res_blocks=(1, 1), norm_num_groups=2)
    decoder = ModelFactory.create_transformer(config.model, levels=stage1.levels)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    generator = MaskGiTPipeline(
        decoder=decoder,
        autoencoder=ModelFactory.create_inference_wrapper(
            ModelFactory.create_autoencoder(stage1), config.sliding_window
        ),
        sampler=ModelFactory.create_sampler(config.sampler, config.masking),
        label_map=LABELS,
        grid=GRID,
        affine=np.eye(4),
        config=config,
    )
    return TranslationPipeline(generator=generator, context=config.in_context, refiner=refiner)


def patient(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.random(GRID, dtype=np.float32) for name in LABELS}


def sources(*names: str, seed: int = 0) -> dict[str, np.ndarray]:
    return {name: patient(seed)[name] for name in names}


@pytest.fixture(scope="module")
def pipeline() -> TranslationPipeline:
    return build()


def test_samples_depend_on_their_seed_and_not_on_batch_or_order(pipeline: TranslationPipeline) -> None:
    given = sources("T1", "T2")
    one = pipeline.translate(given, "FLAIR", num_samples=3, seed=4)
    assert len(one.volumes) == 3
    assert all(v.shape == GRID and v.dtype == np.float32 and 0 <= v.min() < v.max() <= 1 for v in one.volumes)
    swapped = pipeline.translate(dict(reversed(given.items())), "FLAIR", num_samples=3, seed=4)
    batched = pipeline.translate(given, "FLAIR", num_samples=3, seed=4, batch_size=3)
    for a, b, c in zip(one.volumes, swapped.volumes, batched.volumes, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, atol=1e-5)
    np.testing.assert_allclose(one.mean, np.mean(one.volumes, axis=0), atol=1e-6)
    assert one.deviation is not None
    np.testing.assert_allclose(one.deviation, np.std(one.volumes, axis=0), atol=1e-6)
    alone = pipeline.translate(given, "FLAIR", seed=6)
    np.testing.assert_allclose(alone.volumes[0], one.volumes[2], atol=1e-5)
    assert alone.deviation is None
    assert alone.mean is alone.volumes[0]


def test_sources_and_target_matter(pipeline: TranslationPipeline) -> None:
    base = pipeline.translate(sources("T1", "T2"), "FLAIR").mean
    others = [(sources("T1"), "FLAIR"), (sources("T1", "T2"), "T1ce"), (sources("T1", "T2", seed=1), "FLAIR")]
    for given, target in others:
        assert not np.array_equal(pipeline.translate(given, target).mean, base)


def test_the_mean_is_the_decoded_mean_of_the_codes(pipeline: TranslationPipeline) -> None:
    given = sources("T1", "T2")
    mean = pipeline.translate(given, "FLAIR", decode="mean")
    assert mean.volumes == (mean.mean,)
    assert mean.deviation is None
    np.testing.assert_array_equal(mean.mean, pipeline.translate(given, "FLAIR", decode="mean", seed=9).mean)
    several = pipeline.translate(given, "FLAIR", decode="mean", num_samples=2)
    assert len(several.volumes) == 2
    assert several.deviation is not None
    np.testing.assert_array_equal(several.mean, mean.mean)


def test_expected_codes_are_the_mean_over_many_draws(pipeline: TranslationPipeline) -> None:
    condition = pipeline._condition(sources("T1"), "T2", ())
    generator = pipeline.generator
    expected = generator.expected_codes(condition)
    tokens = torch.zeros(1, *generator.token_grid, dtype=torch.int64)
    with torch.no_grad():
        logits = generator.decoder(tokens, tokens == 0, generator.decoder.prepare(condition))
    draws = [logits.sample(torch.Generator().manual_seed(k)) for k in range(400)]
    codes = torch.stack([generator.autoencoder.tokenizer.indices_to_codes(d) for d in draws]).mean(0)
    assert (codes - expected).abs().max() < 0.2


def test_the_encoder_is_asked_for_what_training_used() -> None:
    volume = patient()["T1"]
    for source in ("latent", "codes"):
        pipeline = build(source=source)
        condition = pipeline._condition({"T1": volume}, "T2", ())
        assert isinstance(condition, InContextCondition)
        z, _ = pipeline.generator.autoencoder.encode(torch.from_numpy(volume)[None, None])
        expected = z if source == "latent" else pipeline.generator.autoencoder.tokenizer.quantize(z)
        torch.testing.assert_close(condition.source_latents[:, 0], expected)


def test_examples_come_after_the_sources_and_are_not_aligned() -> None:
    pipeline = build(max_examples=1)
    condition = pipeline._condition(sources("T2", "T1"), "FLAIR", [patient(1)])
    assert isinstance(condition, InContextCondition)
    assert condition.source_labels.tolist() == [[0, 2, 3, 0, 2]]
    assert condition.is_co_registered.tolist() == [[True, True, False, False, False]]
    one = pipeline.translate(sources("T1"), "FLAIR", examples=[patient(1)]).mean
    assert not np.array_equal(one, pipeline.translate(sources("T1"), "FLAIR", examples=[patient(2)]).mean)
    with pytest.raises(ConfigError, match="show the target FLAIR"):
        pipeline.translate(sources("T1"), "FLAIR", examples=[sources("T1", "T2")])


def test_a_decoder_translates_from_one_source() -> None:
    pipeline = build(kind="decoder")
    assert pipeline.translate(sources("T1"), "T2").mean.shape == GRID
    with pytest.raises(ConfigError, match="expected 1 sources"):
        pipeline.translate(sources("T1", "FLAIR"), "T2")
    with pytest.raises(ConfigError, match="at most 0 examples"):
        pipeline.translate(sources("T1"), "T2", examples=[patient(1)])


def test_a_refiner_sees_all_sources_and_can_be_left_out() -> None:
    seen: list[tuple[Tensor, ...]] = []

    def refiner(decoded: Tensor, held: Tensor, present: Tensor, target_label: Tensor) -> Refined:
        seen.append((held, present, target_label))
        return Refined(decoded * 0 + 2.0, decoded * 0 + 0.1)

    pipeline = build(refiner=refiner)
    given = sources("T1", "FLAIR")
    refined = pipeline.translate(given, "T2", num_samples=2)
    assert all((volume == 1.0).all() for volume in refined.volumes), "kept in range"
    # The samples agree; what is left is the deviation of a Laplace distribution of mean absolute error 0.1.
    np.testing.assert_allclose(refined.deviation, 2**0.5 * 0.1, rtol=1e-5)
    held, present, label = seen[0]
    assert present.tolist() == [[True, False, False, True]]
    np.testing.assert_array_equal(held[0, 3].numpy(), given["FLAIR"])
    assert not held[0, 1:3].any()
    assert label.tolist() == [2]
    assert len(seen) == 2
    assert pipeline.translate(given, "T2", refine=False).mean.mean() < 1.0
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("names", "target", "message"),
    [
        (("T1", "T2"), "T2", "not among the sources"),
        (("T1",), "PET", "among T1, T1ce, T2, FLAIR, got PET"),
        ((), "T2", "1 to 3 sources"),
    ],
)
def test_what_cannot_be_translated_is_refused(
    pipeline: TranslationPipeline, names: tuple[str, ...], target: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline.translate(sources(*names), target)


def test_progress_goes_to_the_end(pipeline: TranslationPipeline) -> None:
    seen: list[float] = []
    pipeline.translate(sources("T1"), "T2", num_samples=3, batch_size=2, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 3


@pytest.mark.parametrize("decode", ["sample", "mean"])
def test_nothing_is_left_outside_the_head_of_the_sources(pipeline: TranslationPipeline, decode: Any) -> None:
    given = sources("T1", "T2")
    for name in given:
        given[name] = given[name].copy()
        given[name][:2] = 0.0
    made = pipeline.translate(given, "FLAIR", decode=decode, seed=1).mean
    assert (made[:2] == 0).all()
    assert (made[2:] != 0).any()


def test_a_label_is_generated_by_its_examples() -> None:
    made = build(min_sources=0, max_examples=2)
    generator = made.generator
    shown = [patient(seed)["T2"] for seed in (1, 2)]
    (without,) = generator.generate("T2", num_samples=1, seed=5)
    examples = generator.encode_examples(shown)
    (volume,) = generator.generate("T2", num_samples=1, seed=5, examples=examples)
    assert (volume.data != without.data).any()
    (again,) = generator.generate("T2", num_samples=1, seed=5)
    np.testing.assert_array_equal(again.data, without.data)  # no examples stay behind
    # The same as a translation from no source at all.
    same = made.translate({}, "T2", seed=5, examples=[{"T2": one} for one in shown])
    np.testing.assert_allclose(volume.data, same.mean, atol=1e-5)
    with pytest.raises(ConfigError, match="at most 2 examples"):
        generator.encode_examples([*shown, shown[0]])
    assert not build().generator.is_few_shot
