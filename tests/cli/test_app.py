"""The `prod9` command: version, help, and the commands about configs."""

import json

import pytest
import typer

import prod9
from prod9.cli import app as umbrella
from prod9.cli.app import app
from prod9.cli.shared import run
from prod9.config.load import load_config, shipped_configs


def output(capsys, *arguments):
    assert run(app, arguments) == 0
    return capsys.readouterr().out


def test_version(capsys):
    assert output(capsys, "--version") == f"prod9 {prod9.__version__}\n"


def test_help_names_every_mounted_command(capsys):
    text = output(capsys, "--help")
    mounted = {*umbrella.GROUPS, *umbrella.COMMANDS}
    assert mounted >= {"configs", "doctor", "train"}
    assert mounted == {name for names in umbrella.PANELS.values() for name in names}
    assert all(f"│ {name} " in text for name in mounted)


def test_the_help_quotes_each_command():
    commands = typer.main.get_command(app).commands
    quoted = {name: about for name, (_, about) in (umbrella.GROUPS | umbrella.COMMANDS).items()}
    said = {name: " ".join(command.help.split()) for name, command in commands.items()}
    assert {name: said[name][: len(about)] for name, about in quoted.items()} == quoted
    assert all(said[name][len(about) :][:1] in ("", " ") for name, about in quoted.items())


def test_a_mistyped_command_is_named(capsys):
    assert run(app, ["confgs"]) == 2
    assert "configs" in capsys.readouterr().err


def test_configs_list(capsys):
    rows = json.loads(output(capsys, "configs", "list", "--json"))
    assert [row["name"] for row in rows] == list(shipped_configs())
    assert all(row["about"] and row["stage"] for row in rows)
    assert "demo/stage1" in output(capsys, "configs", "list")


def test_configs_show_prints_what_config_takes_again(capsys, tmp_path):
    path = tmp_path / "shown.yaml"
    name = "maskgit/brats/stage1/fsq_x8"
    path.write_text(output(capsys, "configs", "show", name, "--set", "seed=5"))
    environ = {"BRATS_DIR": "/d"}
    assert "${BRATS_DIR}" in path.read_text()
    assert load_config(path, environ=environ) == load_config(name, overrides=["seed=5"], environ=environ)


@pytest.mark.parametrize("stage", ["autoencoder", "transformer"])
def test_configs_schema(capsys, stage):
    text = output(capsys, "configs", "schema", "--stage", stage)
    assert f"# stage: {stage}" in text
    assert "| `training.max_steps` |" in text
    schema = json.loads(output(capsys, "configs", "schema", "--stage", stage, "--json"))
    assert list(schema) == [stage]


def test_configs_schema_refuses_an_unknown_stage(capsys):
    assert run(app, ["configs", "schema", "--stage", "vae"]) == 2
    error = capsys.readouterr().err
    assert "expected autoencoder or transformer or refiner" in error
    assert "got 'vae'" in error
