"""Detail flows at the end of every pipeline: found, drawn from, and refused where they do not fit."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prod9.errors import CheckpointError, ConfigError
from prod9.measures.noise import noise_level
from prod9.pipelines.detail import DetailBase, DetailChoice, DetailPipeline, find_detail
from prod9.pipelines.placement import head_of
from tests.pipelines import test_inpainting, test_maskgit, test_patients, test_translation
from tests.training.tiny_detail import LABELS, write_detail

BASE = "a" * 64
GRID = (8, 12, 8)


def flow(folder: Path, name: str = "run_detail", **how: Any) -> Path:
    write_detail(folder / name / "checkpoints" / "last.ckpt", how.pop("base", BASE), **how)
    return folder / name


def base(folder: Path, **changes: Any) -> DetailBase:
    (folder / "run").mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "stage": "detail", "key": "autoencoder", "sha256": BASE, "beside": [folder / "run"], "label_map": LABELS,
    }  # fmt: skip
    return DetailBase(**(values | changes))


def volume(seed: int = 0, sides: tuple[int, ...] = (12, 12, 12)) -> np.ndarray:
    soft = np.zeros(sides, np.float32)
    inner = tuple(slice(2, side - 2) for side in sides)
    soft[inner] = 0.3 + 0.4 * np.random.default_rng(seed).random(soft[inner].shape, dtype=np.float32)
    return soft


def test_what_lies_beside_a_model_is_used_and_other_kinds_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_detail(DetailChoice(), base(tmp_path), "cpu") is None
    flow(tmp_path, stage="translation_detail", key="transformer")
    with caplog.at_level(logging.WARNING, logger="prod9"):
        assert find_detail(DetailChoice(), base(tmp_path), "cpu") is None
    assert not caplog.text
    flow(tmp_path, "run/detail")
    found = find_detail(DetailChoice(steps=3, noise=0.01), base(tmp_path), "cpu")
    assert found is not None
    assert found.settings == {"steps": 3, "noise": 0.01}
    assert find_detail(None, base(tmp_path), "cpu") is None
    assert DetailPipeline.from_checkpoint(tmp_path / "run" / "detail").settings == {
        "steps": 2,
        "noise": "scans",
    }


def test_a_flow_of_another_model_is_refused_by_name_and_passed_over_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = flow(tmp_path, base="b" * 64)
    with pytest.raises(
        CheckpointError, match=r"detail flow of the autoencoder in use \(aaaaaaaaaaaa…\), got that of"
    ):
        find_detail(DetailChoice(path=other), base(tmp_path), "cpu")
    with caplog.at_level(logging.WARNING, logger="prod9"):
        assert find_detail(DetailChoice(), base(tmp_path), "cpu") is None
    assert "Going on without that detail flow" in caplog.text
    labels = flow(tmp_path, "labels", labels={"T1": 1, "T2": 2})
    with pytest.raises(CheckpointError, match="expected the labels"):
        find_detail(DetailChoice(path=labels), base(tmp_path), "cpu")
    translations = {"stage": "translation_detail", "key": "transformer"}
    of_translations = flow(tmp_path, "refined", refiner="c" * 64, **translations)
    with pytest.raises(CheckpointError, match="got stage translation_detail"):
        find_detail(DetailChoice(path=of_translations), base(tmp_path), "cpu")
    with pytest.raises(
        CheckpointError, match=r"refiner in use has corrected \(none\), got that of another \(cccc"
    ):
        find_detail(DetailChoice(path=of_translations), base(tmp_path, **translations), "cpu")
    damaged = flow(tmp_path, "damaged", noise={})
    with pytest.raises(CheckpointError, match=r"expected levels of noise in data.noise"):
        find_detail(DetailChoice(path=damaged), base(tmp_path), "cpu")


def test_steps_and_noise_beyond_the_training_are_refused(tmp_path: Path) -> None:
    path = flow(tmp_path)
    with pytest.raises(ConfigError, match=r"detail-steps: expected 1 to 4, as many as .* got 5"):
        DetailPipeline.from_checkpoint(path, steps=5)
    with pytest.raises(ConfigError, match=r"noise: expected 0 to 0.08, the levels that .* got 0.2"):
        DetailPipeline.from_checkpoint(path, noise=0.2)
    for wish, word in ((DetailChoice(noise=0.0), "noise"), (DetailChoice(steps=2), "steps")):
        with pytest.raises(ConfigError, match=f"expected a detail flow to ask for {word}, got none"):
            find_detail(wish, base(tmp_path / "elsewhere"), "cpu")


def test_without_a_detail_flow_volumes_get_the_noise_of_the_scans(tmp_path: Path) -> None:
    known = {"noise": {"T1": [0.01, 0.03]}}

    def found(choice: DetailChoice, scans: dict[str, Any]) -> Any:
        return find_detail(choice, base(tmp_path / "elsewhere", scans=scans), "cpu")

    assert found(DetailChoice(), known).settings == {"noise": "scans"}
    assert found(DetailChoice(noise=0.0), known).settings == {"noise": 0.0}
    assert found(DetailChoice(noise=0.02), {}).settings == {"noise": 0.02}
    assert found(DetailChoice(), {}) is None, "an autoencoder that was trained before levels were recorded"
    with pytest.raises(ConfigError, match=r"noise: expected a level of 0 to 1, in intensities, got 3"):
        found(DetailChoice(noise=3.0), known)
    with pytest.raises(ConfigError, match="expected a detail flow to ask for steps"):
        found(DetailChoice(steps=3), known)
    with pytest.raises(CheckpointError, match="expected levels of noise"):
        found(DetailChoice(), {"noise": {"T1": ["loud"]}})


def test_draws_are_those_of_the_seed(tmp_path: Path) -> None:
    pipeline = DetailPipeline.from_checkpoint(flow(tmp_path))
    soft = volume()
    one = pipeline.sharpen(soft, "T1", seed=3)
    assert one.shape == soft.shape
    assert one.dtype == np.float32
    assert 0 <= one.min() < one.max() <= 1
    assert not one[~head_of(soft)].any()
    torch.manual_seed(9)
    np.testing.assert_array_equal(pipeline.sharpen(soft, "T1", seed=3), one)
    for other in (pipeline.sharpen(soft, "T1", seed=4), pipeline.sharpen(soft, "T2", seed=3)):
        assert not np.array_equal(other, one)


def test_the_level_is_drawn_from_the_training_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = DetailPipeline.from_checkpoint(flow(tmp_path))
    told: list[float] = []
    sample = pipeline.flow.sample

    def recording(network: Any, condition: Any, *rest: Any) -> torch.Tensor:
        told.append(condition.noise.item())
        return sample(network, condition, *rest)

    monkeypatch.setattr(pipeline.flow, "sample", recording)
    for seed in range(30):
        pipeline.sharpen(volume(sides=(6, 6, 6)), "T1", seed=seed)
    assert 0.02 <= min(told) < 0.025 < 0.035 < max(told) <= 0.04
    pipeline.noise = 0.0
    pipeline.sharpen(volume(), "T1", seed=0)
    assert told[-1] == 0.0


def test_sources_are_those_of_the_training_or_refused(tmp_path: Path) -> None:
    plain = DetailPipeline.from_checkpoint(flow(tmp_path))
    of_translations = flow(tmp_path, "stage2", stage="translation_detail", key="transformer")
    translations, soft = DetailPipeline.from_checkpoint(of_translations), volume()
    assert translations.decode == "mean"
    given = {"T1": volume(1), "T2": volume(2)}
    made = translations.sharpen(soft, "FLAIR", seed=0, sources=given)
    assert not np.array_equal(made, translations.sharpen(soft, "FLAIR", seed=0, sources={"T1": volume(1)}))
    with pytest.raises(ConfigError, match=r"expected some of T1, T1ce, T2, FLAIR, .* got none"):
        translations.sharpen(soft, "FLAIR", seed=0)
    with pytest.raises(ConfigError, match=r"expected some of T1, T1ce, T2, FLAIR, .* got PET"):
        translations.sharpen(soft, "FLAIR", seed=0, sources={"PET": soft})
    with pytest.raises(ConfigError, match=r"expected none, .* got T1, T2"):
        plain.sharpen(soft, "FLAIR", seed=0, sources=given)
    with pytest.raises(ConfigError, match=r"label: expected one of T1, T1ce, T2, FLAIR, .* got 'PET'"):
        plain.sharpen(soft, "PET", seed=0)


def test_generated_volumes_depend_on_no_batch_and_without_detail_on_nothing_new(tmp_path: Path) -> None:
    labels = test_maskgit.LABELS
    detail = DetailPipeline.from_checkpoint(flow(tmp_path, labels=labels))
    pipeline = test_maskgit.build()
    soft = test_maskgit.draw(pipeline)
    pipeline.sharpen_with(detail)
    assert pipeline.sha256["detail"] == detail.sha256
    sharp = test_maskgit.draw(pipeline)
    batched = test_maskgit.draw(pipeline, batch_size=4)
    alone = test_maskgit.draw(pipeline, num_samples=1, start=2)
    for before, one, other in zip(soft, sharp, batched, strict=True):
        assert not np.array_equal(before.data, one.data)
        np.testing.assert_allclose(one.data, other.data, atol=1e-4)
    np.testing.assert_allclose(alone[0].data, sharp[2].data, atol=1e-4)
    pipeline.sharpen_with(None)
    assert "detail" not in pipeline.sha256
    for before, after in zip(soft, test_maskgit.draw(pipeline), strict=True):
        np.testing.assert_array_equal(before.data, after.data)


@pytest.mark.parametrize("decode", ["mean", "sample"])
def test_samples_of_a_translation_are_sharp_and_the_mean_is_not(tmp_path: Path, decode: str) -> None:
    path = flow(tmp_path, stage="translation_detail", key="transformer")
    pipeline, given = test_translation.build(), test_translation.sources("T1", "T2")
    plain = pipeline.translate(given, "FLAIR", num_samples=2)
    mean = pipeline.translate(given, "FLAIR", decode="mean").mean
    pipeline.detail = DetailPipeline.from_checkpoint(path)
    pipeline.detail.decode = decode
    made = pipeline.translate(given, "FLAIR", num_samples=2, batch_size=2)
    np.testing.assert_array_equal(pipeline.translate(given, "FLAIR", decode="mean").mean, mean)
    alone = pipeline.translate(given, "FLAIR", seed=1)
    np.testing.assert_allclose(alone.mean, made.volumes[1], atol=1e-4)
    assert not np.array_equal(made.volumes[0], made.volumes[1])
    for before, after in zip(plain.volumes, made.volumes, strict=True):
        assert not np.array_equal(before, after)
    np.testing.assert_allclose(made.deviation, np.std(made.volumes, axis=0), atol=1e-6)
    unrefined = pipeline.translate(given, "FLAIR", num_samples=2, refine=False)
    np.testing.assert_array_equal(unrefined.volumes[0], plain.volumes[0])
    if decode == "mean":
        # Samples start from one soft volume: only detail tells them apart.
        pipeline.detail.flow.start_noise = 1e-6
        near = pipeline.translate(given, "FLAIR", num_samples=2)
        np.testing.assert_allclose(near.volumes[0], near.volumes[1], atol=2e-2)


def test_a_region_is_drawn_sharp_and_nothing_outside_changes(tmp_path: Path) -> None:
    pipeline = test_inpainting.build()
    detail = DetailPipeline.from_checkpoint(flow(tmp_path, labels=dict(pipeline.generator.label_map)))
    source = test_inpainting.source.__wrapped__(tmp_path)  # type: ignore[attr-defined]
    region = test_inpainting.region.__wrapped__(source)  # type: ignore[attr-defined]
    soft = test_inpainting.draw(pipeline, source, region)
    pipeline.generator.sharpen_with(detail)
    sharp = test_inpainting.draw(pipeline, source, region)
    inside = region.data != 0
    for before, after in zip(soft, sharp, strict=True):
        np.testing.assert_array_equal(after.data[~inside], source.data[~inside])
        assert not np.array_equal(before.data[inside], after.data[inside])


def test_patients_keep_one_head(tmp_path: Path) -> None:
    pipeline = test_patients.pipeline.__wrapped__()  # type: ignore[attr-defined]
    soft = test_patients.make(pipeline, [0])[0]
    labels = dict(pipeline.first.label_map)
    pipeline.first.sharpen_with(DetailPipeline.from_checkpoint(flow(tmp_path, labels=labels)))
    pipeline.translator.detail = DetailPipeline.from_checkpoint(
        flow(tmp_path, "t", stage="translation_detail", key="transformer", labels=labels)
    )
    sharp = test_patients.make(pipeline, [0])[0]
    assert (soft.head == sharp.head).all()
    for name, image in sharp.images.items():
        assert ((image > 0) == sharp.head).all()
        assert not np.array_equal(image, soft.images[name])
    assert {"label detail", "in-context detail"} <= pipeline.sha256.keys()
    assert pipeline.detail is pipeline.first.detail
    levels = noise_level(torch.from_numpy(sharp.images["T2"])[None], torch.from_numpy(sharp.head)[None])
    assert levels.shape == (1,)
