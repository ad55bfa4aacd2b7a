"""A resumed run equals an uninterrupted one, bit for bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prod9.data.splits import Split
from prod9.errors import CheckpointError, ConfigError
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.models.run_folder import read_index
from prod9.training.lightning.continuing import refuse_others
from prod9.training.run import train, validate
from tests.training.tiny import AUTOENCODER, write_autoencoder


def assert_same(a, b, name=""):
    assert type(a) is type(b), name
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), name
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_same(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), name
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{name}.{index}")
    else:
        assert a == b, name


@pytest.mark.parametrize(
    "stage",
    ["autoencoder", "transformer", "maisi_vae", "maisi_diffusion", "maskgit_controlnet", "maisi_controlnet"],
)
def test_a_run_that_crashed_and_went_on_equals_one_that_did_not(
    stage, make_config, memory_data, last_state, logged, run_json
):
    keep = {"checkpoint": {"every_steps": 2}, "num_samples": 0}
    config = make_config(stage, "whole", callbacks=keep)
    train(config)
    whole = Path(config.output_dir)
    for crash in (3, 5):
        config = make_config(stage, f"broken{crash}", callbacks=keep)
        broken = Path(config.output_dir)
        memory_data["stop_before"] = crash
        with pytest.raises(RuntimeError, match="power"):
            train(config)
        saved = last_state(broken)["step"]
        assert saved == crash - 1

        memory_data["stop_before"] = None
        assert train(config, resume="auto").step == 6
        assert_same(last_state(whole), last_state(broken))
        # Validations and logs fall on the same steps, with the same values.
        assert logged(whole)[-1]["step"] == logged(broken)[-1]["step"]
        val, again = (
            [row for row in logged(run) if any(k.startswith("val/") and v for k, v in row.items())]
            for run in (whole, broken)
        )
        assert val[-1] == again[-1]
        assert [(s["outcome"], s["from_step"], s["to_step"]) for s in run_json(broken)] == [
            ("failed", 0, crash),
            ("finished", saved, 6),
        ]


def test_a_damaged_last_checkpoint_is_passed_over_and_the_result_is_the_same(
    make_config, memory_data, last_state, caplog
):
    keep = {"checkpoint": {"every_steps": 2}, "num_samples": 0}
    whole, broken = (make_config("transformer", name, callbacks=keep) for name in ("whole", "broken"))
    train(whole)
    memory_data["stop_before"] = 5
    with pytest.raises(RuntimeError, match="power"):
        train(broken)
    last = Path(broken.output_dir) / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])

    memory_data["stop_before"] = None
    train(broken, resume="auto")
    assert "previous.ckpt" in caplog.text
    assert_same(last_state(Path(whole.output_dir)), last_state(Path(broken.output_dir)))


def test_more_steps_can_be_added_to_a_finished_run(make_config, memory_data, caplog):
    train(make_config("transformer", "run"))
    longer = make_config("transformer", "run", training={"max_steps": 8})
    assert train(longer, resume="auto").step == 8
    assert "training.max_steps" in caplog.text


def test_a_finished_run_is_not_run_again(make_config, memory_data, caplog):
    config = make_config("transformer", "run")
    first = replace(
        train(config), headline=""
    )  # a finished run is not built, so its yardsticks are not known
    assert replace(train(config, resume="auto"), headline="") == first
    assert "had no effect" not in caplog.text
    changed = make_config("transformer", "run", sampler={"steps": 7})
    assert replace(train(changed, resume="auto"), headline="") == first
    assert "sampler.steps had no effect" in caplog.text


def test_resume_auto_starts_where_there_is_nothing(make_config, memory_data):
    assert train(make_config("transformer", "run"), resume="auto").step == 6


def test_an_existing_run_is_refused_without_resume(make_config, memory_data):
    config = make_config("transformer", "run")
    train(config)
    with pytest.raises(ConfigError, match="--resume"):
        train(config)


def test_going_on_with_one_run_and_starting_from_another_exclude_each_other(make_config):
    with pytest.raises(ConfigError, match="one of them"):
        train(make_config("transformer", "run"), resume="somewhere", init_from="x")


def test_auto_starts_from_the_given_weights_only_where_nothing_was_begun(make_config, memory_data, run_json):
    first = make_config("transformer", "first", training={"max_steps": 2}, callbacks={"num_samples": 0})
    train(first)
    for steps in (2, 4):
        config = make_config(
            "transformer", "run", training={"max_steps": steps}, callbacks={"num_samples": 0}
        )
        train(config, resume="auto", init_from=first.output_dir)
    sessions = run_json(Path(config.output_dir))
    assert [(s["from_step"], s["init_from"]) for s in sessions] == [(0, first.output_dir), (2, None)]


def test_another_architecture_is_refused_naming_the_difference(make_config, memory_data):
    train(make_config("transformer", "run", training={"max_steps": 2}))
    wider = make_config("transformer", "run", model={"kind": "label_conditional", "embed_dim": 48})
    with pytest.raises(CheckpointError, match="embed_dim: 24 there, 48 here"):
        train(wider, resume="auto")


def test_a_checkpoint_older_than_an_option_goes_on_without_it(make_config):
    split = Split(train=("a",), val=("b",), test=("c",))
    fold, haar = (
        make_config("autoencoder", "run", model={**AUTOENCODER, "front_end": kind})
        for kind in ("fold", "haar")
    )
    sections = {c.model.front_end: {"autoencoder": c.model.model_dump(mode="json")} for c in (fold, haar)}
    older = {k: v for k, v in sections["fold"]["autoencoder"].items() if k != "front_end"}
    header = {
        "architecture": {"autoencoder": older},
        "split": split.to_dict(),
        "config": fold.model_dump(mode="json"),
    }
    refuse_others(header, fold, architecture=sections["fold"], split=split)
    with pytest.raises(CheckpointError, match="front_end: fold there, haar here"):
        refuse_others(header, haar, architecture=sections["haar"], split=split)


@pytest.mark.parametrize("before", [None, {}])
def test_the_state_of_another_optimizer_is_refused(make_config, memory_data, before):
    train(make_config("transformer", "run", training={"muon": before}))
    longer = make_config(
        "transformer", "run", training={"max_steps": 8, "muon": {} if before is None else None}
    )
    with pytest.raises(CheckpointError, match=r"training\.muon"):
        train(longer, resume="auto")


@pytest.mark.parametrize("stage", ["autoencoder", "transformer"])
def test_a_run_with_muon_goes_on_as_if_it_had_not_stopped(stage, make_config, memory_data, last_state):
    settings = {"callbacks": {"checkpoint": {"every_steps": 2}, "num_samples": 0}, "training": {"muon": {}}}
    whole, broken = (make_config(stage, name, **settings) for name in ("whole", "broken"))
    train(whole)
    memory_data["stop_before"] = 5
    with pytest.raises(RuntimeError, match="power"):
        train(broken)
    memory_data["stop_before"] = None
    train(broken, resume="auto")
    assert_same(last_state(Path(whole.output_dir)), last_state(Path(broken.output_dir)))


def test_other_patients_are_refused(make_config, memory_data, monkeypatch):
    from tests.training.tiny import MemoryData

    train(make_config("transformer", "run", training={"max_steps": 2}))
    original = MemoryData.__init__

    def other_patients(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.split = Split(train=("a", "e"), val=("b",), test=())

    monkeypatch.setattr(MemoryData, "__init__", other_patients)
    with pytest.raises(CheckpointError, match="patients"):
        train(make_config("transformer", "run"), resume="auto")


def test_the_checkpoint_of_another_stage_is_refused(make_config, memory_data, tmp_path):
    config = make_config("transformer", "run")
    with pytest.raises(CheckpointError, match="stage transformer, got stage autoencoder"):
        train(config, resume=tmp_path / "upstream.ckpt")


def test_init_from_takes_weights_but_neither_step_nor_optimizer(make_config, memory_data, last_state):
    first = make_config("autoencoder", "first", training={"ema": None})
    train(first)
    second = make_config(
        "autoencoder", "second", training={"ema": None, "max_steps": 1, "learning_rate": 1e-12}
    )
    train(second, init_from=first.output_dir)

    before, after = (last_state(Path(config.output_dir)) for config in (first, second))
    assert after["step"] == 1
    assert after["optimizer_states"][0]["state"][0]["step"] == 1
    for name, weight in before["state_dict"].items():
        torch.testing.assert_close(after["state_dict"][name], weight, atol=1e-3, rtol=0)


@pytest.mark.parametrize("stage", ["autoencoder", "maisi_vae"])
def test_the_noise_of_the_scans_is_measured_once_a_run(stage, make_config, memory_data, monkeypatch):
    from tests.training.tiny import MemoryData

    measured = []
    found = {"T1": [0.01, 0.02]}
    monkeypatch.setattr(
        MemoryData, "noise_levels", lambda self: measured.append(self.config.output_dir) or found
    )
    quick = {"callbacks": {"num_samples": 0}}
    first = make_config(stage, "first", training={"max_steps": 1}, **quick)
    train(first)
    longer = make_config(stage, "first", training={"max_steps": 2}, **quick)
    train(longer, resume="auto")
    validate(longer)
    assert measured == [first.output_dir]
    assert CheckpointManager.open(longer.output_dir, prefer="last").header["data"]["noise"] == found
    other = make_config(stage, "other", training={"max_steps": 1}, **quick)
    train(other, init_from=longer.output_dir)
    assert measured == [first.output_dir, other.output_dir], "its scans may be others"


def test_the_weights_of_the_start_take_part_in_the_ranking_and_change_no_training(
    make_config, memory_data, last_state
):
    sections = {"callbacks": {"num_samples": 0, "checkpoint": {"save_top_k": 9}}}
    first = make_config("autoencoder", "first", **sections)
    train(first)
    base, ends = CheckpointManager.open(first.output_dir), []
    for name, validates in (("guarded", True), ("plain", False)):
        config = make_config("autoencoder", name, training={"validate_start": validates}, **sections)
        folder = Path(config.output_dir)
        train(config, init_from=base.path)
        ranked = {entry["step"]: entry for entry in read_index(folder / "checkpoints")}
        assert (0 in ranked) == validates
        if validates:
            kept = CheckpointManager.open(folder / "checkpoints" / ranked[0]["file"]).state_dict
            assert all(torch.equal(v, base.state_dict[k]) for k, v in kept.items() if k.startswith("auto"))
        ends.append(last_state(folder)["state_dict"])
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


def test_init_from_refuses_another_architecture(make_config, memory_data, tmp_path):
    write = make_config("autoencoder", "first", training={"max_steps": 1})
    train(write)
    other = make_config("autoencoder", "second", model={"num_channels": [4, 8]})
    with pytest.raises(CheckpointError, match="same architecture"):
        train(other, init_from=write.output_dir)


def test_another_autoencoder_than_before_is_refused(make_config, memory_data, tmp_path):
    config = make_config("transformer", "run", training={"max_steps": 2}, callbacks={"num_samples": 0})
    train(config)
    write_autoencoder(tmp_path / "upstream.ckpt", seed=9)
    longer = make_config("transformer", "run")
    with pytest.raises(CheckpointError, match="tokens mean something else"):
        train(longer, resume="auto")
    with pytest.raises(CheckpointError, match="tokens mean something else"):
        validate(config)
