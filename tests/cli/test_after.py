"""The next command: the line that follows the one that has ended."""

import pytest

from prod9.cli.front.after import tell_after_training, use_of
from prod9.config.load import load_config, shipped_configs
from prod9.stages import STAGES, stages_on
from tests.architecture.commands_of_pages import Line, config_of, parsed


def lines(capsys):
    return [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("demo/stage1", "prod9 train --config demo/stage2_label"),
        ("demo/stage2_label", "prod9 train --config demo/stage3"),
        ("demo/maisi_vae", "prod9 train --config demo/maisi_diffusion"),
    ],
)
def test_training_names_the_stage_that_follows(name, expected, capsys):
    tell_after_training(load_config(name), name)
    found = lines(capsys)
    assert found[0] == expected
    for line in found:
        words = tuple(line.split())
        config_of(Line("next", words, None), parsed(Line("next", words, None)))


def test_a_run_elsewhere_is_named_to_what_follows(capsys):
    tell_after_training(load_config("demo/stage1", overrides=["output_dir=a b"]), "demo/stage1")
    assert lines(capsys)[0] == "prod9 train --config demo/stage2_label --set 'inputs.autoencoder=a b'"


def test_configs_beside_the_given_one_come_first(tmp_path, capsys):
    for name in ("stage1", "stage2_label"):
        (tmp_path / f"{name}.yaml").write_text(f"extends: demo/{name}\n")
    tell_after_training(load_config(tmp_path / "stage1.yaml"), str(tmp_path / "stage1.yaml"))
    assert lines(capsys)[0] == f"prod9 train --config {tmp_path / 'stage2_label.yaml'}"


def test_every_use_is_a_command_that_exists():
    environ = {"BRATS_DIR": "/d", "MEDMNIST_DIR": "/d", "DATA_DIR": "/d"}
    seen = set()
    for name in shipped_configs():
        try:
            config = load_config(name, environ=environ)
        except Exception:
            continue
        words = use_of(config, "run")
        if words:
            parsed(Line("use", tuple(words), None))
            seen.add(config.stage)
    assert seen >= {name for name, stage in STAGES.items() if not stage.corrects}


def test_stages_that_make_volumes_come_before_those_that_correct():
    assert [one.name for one in stages_on(STAGES["autoencoder"])] == ["transformer", "detail"]
    assert stages_on(STAGES["maisi_controlnet"]) == []
