"""BraTSRefinerDataModule: what is translated, from what, when again, and what a sample holds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prod9.data.sampling import SampleKey
from prod9.errors import ConfigError
from prod9.training.data.refiner import BraTSRefinerDataModule
from tests.fixtures import write_brats_tree
from tests.training.tiny_refiner import Average, refiner_config


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    write_brats_tree(tmp_path / "cohort", 5)
    return tmp_path


def make(folder: Path, translator: Average | None = None, **sections: Any) -> tuple[Any, Average]:
    translator = translator or Average()
    config = refiner_config(folder / "cohort", folder / "refiner", **sections)
    data = BraTSRefinerDataModule(config, translator=translator)
    data.setup("fit")
    return data, translator


def test_every_scan_is_translated_once_from_others_of_the_patient(cohort: Path) -> None:
    data, translator = make(cohort)
    assert len(translator.calls) == 4 * 4  # 3 patients to train on and 1 to validate on
    assert all(target not in sources and 1 <= len(sources) <= 3 for sources, target, _ in translator.calls)
    assert len({len(sources) for sources, *_ in translator.calls}) > 1
    make(cohort, translator)
    assert len(translator.calls) == 4 * 4
    data.setup("test")
    assert len(translator.calls) == 5 * 4


def test_a_sample_holds_the_translation_its_sources_and_the_scan(cohort: Path) -> None:
    data, _ = make(cohort)
    samples, scans = data._dataset("train"), data.build_patients("train")
    names = data.config.data.modalities
    for index in range(len(samples)):
        scan = scans[index // 4]
        sample, images = samples[index], scan["images"]
        assert sample["label"] == index % 4
        torch.testing.assert_close(sample["target"], images[names[index % 4]])
        assert not sample["present"][sample["label"]]
        there = sample["present"].nonzero()[:, 0].tolist()
        for label, held in enumerate(sample["sources"]):
            torch.testing.assert_close(held, images[names[label]][0] * (label in there))
        mean = torch.stack([images[names[label]] for label in there]).mean(0)
        torch.testing.assert_close(sample["decoded"], mean, atol=0.51 / 255, rtol=0)
        assert torch.equal(sample["region"], scan["seg"] > 0)


def test_a_training_draw_mirrors_all_of_a_sample_or_nothing(cohort: Path) -> None:
    data, _ = make(cohort)
    samples, seen = data._dataset("train"), set()
    for step in range(8):
        drawn, plain = samples[SampleKey(0, step)], samples[0]
        flipped = not torch.equal(drawn["target"], plain["target"])
        seen.add(flipped)
        for name in ("target", "decoded", "sources", "region"):
            assert torch.equal(drawn[name], plain[name].flip(-3) if flipped else plain[name])
    assert seen == {False, True}
    never, _ = make(cohort, data={"augment": {"flip_prob": 0.0}})
    kept = never._dataset("train")
    assert all(torch.equal(kept[SampleKey(0, step)]["target"], kept[0]["target"]) for step in range(8))


@pytest.mark.parametrize(
    ("name", "target_too"), [("affine_prob", True), ("gamma_prob", False), ("bias_field_prob", False)]
)
def test_training_draws_are_augmented_as_the_config_says(cohort: Path, name: str, target_too: bool) -> None:
    data, _ = make(cohort, data={"augment": {"flip_prob": 0.0, name: 1.0}})
    samples = data._dataset("train")
    drawn, plain = samples[SampleKey(0, 3)], samples[0]
    assert not torch.equal(drawn["sources"], plain["sources"])
    for volume in ("target", "decoded"):
        assert torch.equal(drawn[volume], plain[volume]) != target_too
    assert torch.equal(drawn["present"], plain["present"])
    assert drawn["head_voxels"] == (drawn["sources"] > 0).any(0).sum()


def test_a_training_crop_is_one_of_the_same_place_everywhere(cohort: Path) -> None:
    data, _ = make(cohort, data={"augment": {"flip_prob": 0.0}, "crop_size": [8, 12, 16]})
    samples = data._dataset("train")
    whole, places = samples[0], set()
    for step in range(6):
        crop = samples[SampleKey(0, step)]
        assert crop["target"].shape == crop["decoded"].shape == (1, 8, 12, 16)
        place = next(
            (i, j)
            for i in range(9)
            for j in range(5)
            if all(
                torch.equal(whole[name][:, i : i + 8, j : j + 12], crop[name])
                for name in ("target", "decoded", "sources", "region")
            )
        )
        places.add(place)
    assert len(places) > 2


def test_other_weights_and_other_files_are_translated_anew(cohort: Path) -> None:
    _, translator = make(cohort)
    translator.settings = ["other weights"]
    make(cohort, translator)
    assert len(translator.calls) == 2 * 16
    one = next((cohort / "cohort").iterdir())
    (one.parent / "spare").mkdir()
    for path in one.iterdir():
        path.rename(path.parent / path.name)  # the same content is the same translation
    (one.parent / "spare").rmdir()
    make(cohort, translator)
    assert len(translator.calls) == 2 * 16


def test_more_translations_of_a_target_differ(cohort: Path) -> None:
    data, translator = make(cohort, translations={"per_target": 3})
    assert len(data._dataset("train")) == 3 * 4 * 3
    assert len({seed for *_, seed in translator.calls}) == len(translator.calls)


def test_the_number_of_sources_is_the_translators(cohort: Path) -> None:
    _, translator = make(cohort, Average(range(2, 3)))
    assert {len(sources) for sources, *_ in translator.calls} == {2}


def test_patients_that_the_translator_saw_may_not_be_held_out(cohort: Path) -> None:
    data, _ = make(cohort)
    seen = Average(train=data.split.val)
    with pytest.raises(ConfigError, match="a model that was trained on 1 that this run holds out"):
        make(cohort, seen)


def test_too_few_modalities_are_refused(cohort: Path) -> None:
    with pytest.raises(ConfigError, match="expected at least 4, a target and the sources"):
        make(cohort, Average(range(3, 4)), data={"modalities": ["T1", "T2"]})
