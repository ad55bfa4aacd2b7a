"""Loading configs: defaults, `extends`, variables, overrides, and all errors at once."""

import re

import pytest

from prod9.config.load import (
    config_from_dict,
    config_to_dict,
    dump_config,
    find_config,
    load_config,
    shipped_configs,
)
from prod9.errors import ConfigError

STAGE1 = "stage: autoencoder\noutput_dir: ${OUT:-runs/a}\ndata:\n  root: ${BRATS_DIR}\n"
STAGE2 = "stage: transformer\noutput_dir: out\ndata: {root: /d}\nmodel: {kind: label_conditional}\n"
ENVIRON = {"BRATS_DIR": "/brats", "MEDMNIST_DIR": "/medmnist"}


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
        return path

    return write


def errors_of(path, *overrides, **keywords):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides=overrides, **{"environ": ENVIRON, **keywords})
    return str(caught.value)


def test_defaults_come_from_the_schema(write):
    config = load_config(write(STAGE1), environ=ENVIRON)
    assert config.output_dir == "runs/a"
    assert config.data.root == "/brats"
    assert config.model.levels == (8, 8, 8, 6, 5)


def test_a_child_wins_over_what_it_extends(write):
    write(STAGE1 + "training: {max_steps: 5, learning_rate: 1e-3, ema: {decay: 0.9}}", "base.yaml")
    child = write("extends: ../base.yaml\nseed: 3\ntraining: {max_steps: 7, ema: null}", "sub/child.yaml")
    config = load_config(child, environ=ENVIRON)
    assert (config.seed, config.training.max_steps, config.training.learning_rate) == (3, 7, 1e-3)
    assert config.training.ema is None


def test_extends_takes_the_name_of_a_shipped_config(write):
    config = load_config(write("extends: demo/stage1\nseed: 9"))
    shipped = load_config("demo/stage1")
    assert (config.seed, config.data) == (9, shipped.data)


def test_circles_are_refused(write):
    write("extends: b.yaml", "a.yaml")
    assert "a circle" in errors_of(write("extends: a.yaml", "b.yaml"))


@pytest.mark.parametrize("text", ["${N}", "${N:3}", "${N:-3}", "${UNSET:8}", "${EMPTY:-8}"])
def test_variables_become_numbers_where_numbers_are_wanted(write, text):
    path = write(STAGE1 + f"seed: {text}")
    assert load_config(path, environ={**ENVIRON, "N": "8", "EMPTY": ""}).seed == 8


def test_variables_and_overrides_stay_text_where_text_is_wanted(write):
    config = load_config(write(STAGE1), overrides=["output_dir=007"], environ={"BRATS_DIR": "2024"})
    assert (config.data.root, config.output_dir) == ("2024", "007")
    assert type(config.data.root) is str


def test_quoted_variables_are_text(write):
    assert "seed: expected a whole number, got '8'" in errors_of(
        write(STAGE1 + "seed: '${N}'"), environ={**ENVIRON, "N": "8"}
    )


def test_an_unset_variable_is_named_with_key_and_remedy(write):
    message = errors_of(write(STAGE1 + "seed: ${ALSO}"), environ={})
    assert "data.root: the variable BRATS_DIR is not set" in message
    assert "--set data.root=VALUE" in message
    assert "seed: the variable ALSO is not set" in message


def test_an_override_spares_the_variable_it_replaces(write):
    assert load_config(write(STAGE1), overrides=["data.root=/x"], environ={}).data.root == "/x"


def test_a_value_from_the_environment_is_not_expanded_again(write):
    assert "data.root: expected ${NAME}" in errors_of(write(STAGE1), environ={"BRATS_DIR": "${HOME}"})


@pytest.mark.parametrize("value", ["${", "${1A}", "${A-b}", "${A${B}}"])
def test_malformed_variables_are_refused(write, value):
    assert "output_dir: expected ${NAME}" in errors_of(write(STAGE1), ("output_dir", value))


def test_overrides_are_yaml_and_the_last_one_wins(write):
    config = load_config(
        write(STAGE1),
        overrides=[
            "seed=1",
            "seed=2",
            "model.levels=[8, 6,5]",
            "training.ema.decay=0.99",
            ("output_dir", "x"),
        ],
        environ=ENVIRON,
    )
    assert (config.seed, config.model.levels, config.output_dir) == (2, (8, 6, 5), "x")
    assert config.training.ema.decay == 0.99


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected KEY=VALUE"),
        ("=3", "expected a dotted key"),
        ("a..b=3", "expected a dotted key"),
        ("seed.x=3", "--set seed.x: expected a section seed, got 4"),
        ("seed=[", "--set seed:1: not valid YAML"),
    ],
)
def test_malformed_overrides_are_refused(write, override, message):
    assert message in errors_of(write(STAGE1 + "seed: 4"), override)


def test_all_errors_come_at_once(write):
    message = errors_of(
        write(STAGE2),
        "data.rot=1",
        "learning_rate=1",
        "training.learning_rate=fast",
        "training.max_steps=1.5",
        "trainer.devices=a",
        "trainer.loggers=[csv, tensorbord]",
        "masking.scheduler_type=arcos",
        "data.grid=[1, 2]",
        "data.split.train=0.9",
        "model.dropout=2",
        "callbacks.lr_monitor=yes",
        "loss=null",
    )
    assert "12 problems" in message
    for line in [
        "data.rot: unknown key; did you mean 'root'?",
        "learning_rate: unknown key; did you mean 'training.learning_rate'?",
        "training.learning_rate: expected a number, got 'fast'",
        "training.max_steps: expected a whole number, got 1.5",
        "trainer.devices: expected a whole number or a list or 'auto', got 'a'",
        "trainer.loggers.1: expected 'csv', 'tensorboard', 'jsonl', 'wandb' or 'mlflow', got 'tensorbord'",
        "masking.scheduler_type: expected 'log', 'log2', 'linear', 'sqrt', 'cosine' or 'arccos', got 'arcos'",
        "data.grid: expected more than 2 values, got [1, 2]",
        "data.split: train + val + test: expected a sum of 1, got 1.1",
        "model.dropout: expected at most 1.0, got 2",
        "callbacks.lr_monitor: expected true or false, got 'yes'",
        "loss: expected a section (key: value), got null",
    ]:
        assert line in message


def test_one_error_is_one_line(write):
    message = errors_of(write("stage: autoencoder\ndata: {root: /d}"))
    assert message.endswith(
        "output_dir: required, but not given; add it to the file, or pass --set output_dir=VALUE"
    )
    assert "\n" not in message


def test_a_wrong_kind_is_named_with_the_right_ones(write):
    message = errors_of(write(STAGE2), "model.kind=decodr")
    assert (
        "model.kind: expected one of 'label_conditional', 'decoder', 'single_stream', got 'decodr'; "
        "did you mean 'decoder'?" in message
    )


def test_the_stage_must_be_one_that_the_caller_runs(write):
    message = errors_of(write(STAGE2), stage="autoencoder")
    assert "stage: expected autoencoder, got transformer" in message
    assert "prod9-train-transformer" in message


@pytest.mark.parametrize(
    ("stage", "got"), [("", "nothing"), ("stage: autoencodr", "did you mean 'autoencoder'")]
)
def test_the_stage_must_be_known(write, stage, got):
    assert got in errors_of(write(f"{stage}\noutput_dir: x\n"))


def test_a_missing_config_names_the_nearest_shipped_one():
    with pytest.raises(ConfigError, match="did you mean 'demo/stage1'"):
        find_config("demo/stge1")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: expected a YAML file"):
        find_config("nowhere.yaml")


@pytest.mark.parametrize("name", shipped_configs())
def test_a_dumped_config_loads_as_the_same(name, tmp_path):
    config = load_config(name, environ=ENVIRON)
    path = tmp_path / "dump.yaml"
    path.write_text(dump_config(config))
    assert load_config(path, environ={}) == config
    assert config_from_dict(config_to_dict(config), source="checkpoint") == config


def test_a_recorded_config_that_no_longer_fits_names_its_source():
    with pytest.raises(ConfigError, match=r"last\.ckpt: "):
        config_from_dict({"stage": "autoencoder", "old_key": 1}, source="last.ckpt")


@pytest.mark.parametrize(
    "name",
    ["demo/stage1", "maskgit/brats/stage2_refiner/base", "maisi/diffusion/brats_controlnet"],
)
def test_stages_that_are_not_sharded_refuse_fsdp(name):
    config = load_config(name, environ=ENVIRON)
    text = errors_of(name, "trainer.strategy=fsdp")
    assert f"trainer.strategy: expected auto or ddp for stage {config.stage}, got fsdp" in text
    assert "use auto" in text


def test_stage2_takes_fsdp_but_neither_compiles_nor_reorders_weights_with_it(write):
    stage2 = write(STAGE2)
    assert load_config(stage2, overrides=["trainer.strategy=fsdp"]).trainer.strategy == "fsdp"
    compiled = errors_of(stage2, "trainer.strategy=fsdp", "training.compile=true")
    assert "training.compile: expected false with trainer.strategy fsdp" in compiled
    maisi = write(
        "stage: maisi_diffusion\noutput_dir: out\ndata: {root: /d, label_map: {T1: 1}, modalities: [T1]}\n"
    )
    text = errors_of(maisi, "trainer.strategy=fsdp")
    assert "training.channels_last: expected false with trainer.strategy fsdp" in text
    load_config(maisi, overrides=["trainer.strategy=fsdp", "training.channels_last=false"])


def test_weights_for_classes_that_no_mask_has_are_refused():
    for name in ("demo/stage3", "demo/maisi_controlnet"):
        load_config(name, overrides=["loss.class_weights=[1, 1, 3]"])
        with pytest.raises(ConfigError, match=r"loss.class_weights: expected at most 3 factors.*got 4"):
            load_config(name, overrides=["loss.class_weights=[1, 1, 1, 3]"])


@pytest.mark.parametrize(
    ("given", "spelt"), [("[t1n, T1C, t2w, t2f]", ("T1", "T1ce", "T2", "FLAIR")), ("[t1gd]", ("T1ce",))]
)
def test_modalities_are_taken_by_every_name_that_people_use(given, spelt):
    config = load_config(
        "maskgit/brats/stage1/fsq_x8", overrides=[f"data.modalities={given}"], environ={"BRATS_DIR": "/d"}
    )
    assert config.data.modalities == spelt


def test_errors_in_a_shipped_config_carry_its_name(write):
    with pytest.raises(ConfigError, match=r"^demo/stage1: data.rot: unknown key"):
        load_config("demo/stage1", overrides=["data.rot=x"])
    with pytest.raises(ConfigError, match=r"^demo/stage1: stage: expected transformer"):
        load_config("demo/stage1", stage="transformer")
    own = write("extends: demo/stage1\ndata: {rot: x}\n")
    with pytest.raises(ConfigError, match=re.escape(str(own))):
        load_config(own)
