"""Values of a config that no run can use, or that mean something else than they look like, are refused by their key."""

import pytest

from prod9.config.load import load_config
from prod9.data.labels import label_table
from prod9.errors import ConfigError
from tests.harness import run


def labels(t1: int, t1ce: int, flair: int) -> str:
    return f"data.label_map={{T1: {t1}, T1ce: {t1ce}, T2: 2, FLAIR: {flair}}}"


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (
            "stage1",
            ["data.intensity.lower=99", "data.intensity.upper=1"],
            "data.intensity: .* the lower one below",
        ),
        ("stage1", ["data.intensity.upper=150"], "data.intensity: .* percentiles from 0 to 100"),
        ("stage1", ["data.intensity.mode=range", "data.intensity.upper=0"], "data.intensity: .* got 0 and 0"),
        ("stage1", ["data.intensity.lower=.nan"], "data.intensity.lower: expected a finite number, got nan"),
        (
            "stage1",
            ["training.learning_rate=.inf"],
            "training.learning_rate: expected a finite number, got inf",
        ),
        ("stage1", ["data.spacing=[3.75, 3.75, -1]"], r"data.spacing.2: expected more than 0.0, got -1"),
        ("stage1", ["data.grid=[0, 56, 48]"], "data.grid.0: expected at least 1, got 0"),
        (
            "stage1",
            ["data.crop_size=[99, 8, 8]"],
            "^demo/stage1: data: crop_size: expected at most data.grid",
        ),
        ("stage1", ["training.betas=[0.9, 1.0]"], "training: betas: expected two numbers"),
        (
            "stage1",
            ["callbacks.combined_metric={psnr: 0, ssim: 0}"],
            "callbacks.combined_metric: .* got 0 for all",
        ),
        ("stage1", ["trainer.devices=[0, 0]"], "trainer: devices: expected a number, or different ids"),
        ("stage1", ["trainer.devices=[]"], "trainer: devices: expected a number, or different ids"),
        ("stage1", ["seed=18446744073709551616"], "seed: expected less than 9223372036854775808"),
        ("stage1", ["output_dir=''"], "output_dir: expected at least 1 character"),
        ("stage1", ["data.root=''"], "data.root: expected at least 1 character"),
        (
            "stage2_label",
            [labels(0, 0, 3)],
            "two of one label would be learnt as one",
        ),
        (
            "stage2_label",
            [labels(-1, 1, 3)],
            "label_map: expected a label of 0 or more",
        ),
        (
            "stage2_label",
            [labels(0, 1, 9)],
            "model.num_classes: .* got 4; set it to 10",
        ),
        ("stage2_label", ["model.num_classes=3"], "model.num_classes: .* got 3; set it to 4"),
        (
            "stage2_label",
            ["data.modalities=[T1, t1w]"],
            "modalities: expected each once, in any case, got T1 twice",
        ),
        (
            "stage2_label",
            ["data.label_map={T1: 0, t1: 1}", "data.modalities=[T1, t1]"],
            "in any case, got T1 twice",
        ),
    ],
)
def test_values_are_refused_by_their_key(config: str, changes: list[str], said: str) -> None:
    """Such a run ended with an error of a library, or learnt something else without a word."""
    with pytest.raises(ConfigError, match=said):
        load_config(f"demo/{config}", overrides=changes)


def test_a_table_of_labels_names_each_value_once() -> None:
    with pytest.raises(ConfigError, match="expected each value once, got 1=1, 2=2, 1=3"):
        label_table("1=1, 2=2, 1=3")
    assert label_table("1=1, 2=1") == {0: 0, 1: 1, 2: 1}


@pytest.mark.parametrize("words", [("evaluate", "images", "A", "B"), ("evaluate", "samples", "A", "B")])
def test_a_seed_beyond_what_torch_takes_is_wrong_usage(words: tuple[str, ...]) -> None:
    ran = run("prod9", *words, "--seed", 2**64)
    assert ran.code == 2
    assert "got 18446744073709551616" in ran.err
