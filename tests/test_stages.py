"""The table of stages agrees with configs, commands and checks."""

import tomllib
from pathlib import Path

import pytest

from prod9.config.load import load_config, of_class, shipped_configs
from prod9.config.schema import CONFIGS, RefinerConfig, TransformerConfig
from prod9.errors import ConfigError
from prod9.stages import (
    AUTOENCODERS,
    CONTROLS,
    FAMILIES,
    GENERATORS,
    STAGES,
    first_stage_of,
    stage_named,
    stages_of,
)

SCRIPTS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]


def test_every_stage_has_a_config_and_every_config_a_stage():
    assert list(CONFIGS) == list(STAGES)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_record_fits_what_it_names(stage):
    assert stage.command in SCRIPTS
    inputs = CONFIGS[stage.name].model_fields.get("inputs")
    assert (inputs is None) == (not stage.bases)
    for key, base in stage.bases.items():
        assert key in inputs.annotation.model_fields
        assert STAGES[base].family == stage.family
        assert STAGES[base].number <= stage.number
    for name in stage.configs:
        assert load_config(f"demo/{name}", fill_variables=False).stage == stage.name
    assert first_stage_of(stage).number == 1
    assert stage_named(stage.name) is stage


def test_the_stages_of_each_kind():
    assert AUTOENCODERS == ("autoencoder", "maisi_vae")
    assert GENERATORS == ("transformer", "maisi_diffusion")
    assert CONTROLS == ("maskgit_controlnet", "maisi_controlnet")
    for family in FAMILIES:
        numbers = [stage.number for stage in stages_of(family)]
        assert numbers == sorted(numbers)


def test_an_unknown_stage_is_refused():
    with pytest.raises(ConfigError, match=r"stage: expected autoencoder or .*, got 'gan'"):
        stage_named("gan")


def test_a_config_is_taken_as_its_class_alone():
    config = load_config("demo/stage2", fill_variables=False)
    assert of_class(config, TransformerConfig) is config
    assert of_class(config, (RefinerConfig, TransformerConfig)) is config
    with pytest.raises(ConfigError, match="stage: expected refiner, got transformer"):
        of_class(config, RefinerConfig)


def test_shipped_configs_are_of_known_stages():
    assert {load_config(name, fill_variables=False).stage for name in shipped_configs()} == set(STAGES)
