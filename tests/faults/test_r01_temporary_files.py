"""Temporary files of killed processes are no results: nobody takes them for a run, and the next start removes them."""

import json
from pathlib import Path

import pytest

from prod9.errors import CheckpointError
from prod9.files import atomic_write
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.models.run_folder import holds_run, require_fresh
from prod9.system.folders import finals, is_temporary, sweep
from prod9.training.run import train


def test_r1_temporary_files_are_known_by_what_the_writer_makes(tmp_path):
    with atomic_write(tmp_path / "last.ckpt") as temporary:
        temporary.write_text("half")
        assert is_temporary(temporary)
        assert finals(tmp_path, "*.ckpt") == []
    assert finals(tmp_path, "*.ckpt") == [tmp_path / "last.ckpt"]


def test_r1_an_old_temporary_file_is_swept_and_a_young_one_stays(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".tmp-1-a").touch()
    sweep(tmp_path, deep=True, older_than_s=3600)
    assert (tmp_path / "deep" / ".tmp-1-a").exists()
    sweep(tmp_path)
    assert (tmp_path / "deep" / ".tmp-1-a").exists()
    sweep(tmp_path, deep=True)
    assert not (tmp_path / "deep" / ".tmp-1-a").exists()


def killed_at_the_first_save(output_dir: Path) -> None:
    folder = output_dir / "checkpoints"
    folder.mkdir(parents=True)
    (folder / ".tmp-0123456789ab-last.ckpt").write_bytes(b"PK half of a checkpoint")
    (folder / ".tmp-0123456789ab-best-step=000004.ckpt").write_bytes(b"PK half of a checkpoint")


def test_r1_all_who_ask_whether_there_is_a_run_get_one_answer(tmp_path):
    killed_at_the_first_save(tmp_path)
    assert not holds_run(tmp_path)
    require_fresh(tmp_path)
    with pytest.raises(CheckpointError, match="train that stage first"):
        CheckpointManager.candidates(tmp_path)


@pytest.mark.parametrize("resume", [None, "auto"])
def test_r1_a_run_killed_in_its_first_save_starts_anew(resume, make_config, memory_data):
    config = make_config("autoencoder", "run", training={"max_steps": 2}, callbacks={"num_samples": 0})
    killed_at_the_first_save(Path(config.output_dir))
    assert train(config, resume=resume).step == 2
    assert not list(Path(config.output_dir).rglob(".tmp-*"))


def test_r26_a_finished_run_is_swept_too_in_all_its_folders(make_config, memory_data):
    config = make_config("autoencoder", "run", training={"max_steps": 2}, callbacks={"num_samples": 0})
    train(config)
    output_dir = Path(config.output_dir)
    for name in ("checkpoints", "samples", "cache", "inputs", "logs/csv/x"):
        (output_dir / name).mkdir(parents=True, exist_ok=True)
        (output_dir / name / ".tmp-0123456789ab-x.npy").touch()
    (output_dir / "checkpoints" / "gone.ckpt.sha256").write_text("0  gone.ckpt\n")
    (output_dir / ".tmp-0123456789ab-run.json").touch()
    train(config, resume="auto")
    assert not list(output_dir.rglob(".tmp-*"))
    assert not (output_dir / "checkpoints" / "gone.ckpt.sha256").exists()


def test_r25_a_best_checkpoint_that_no_ranking_lists_goes_at_the_next_start(make_config, memory_data):
    config = make_config("autoencoder", "run", callbacks={"num_samples": 0})
    result = train(config)
    folder = Path(config.output_dir) / "checkpoints"
    stray = folder / "best-step=000003.ckpt"
    stray.write_bytes(result.checkpoint.read_bytes())
    assert CheckpointManager.resolve(config.output_dir) == result.checkpoint
    train(config, resume="auto")
    assert not stray.exists()
    assert result.checkpoint.exists()

    stray.write_bytes(result.checkpoint.read_bytes())
    train(
        make_config("autoencoder", "run", training={"max_steps": 7}, callbacks={"num_samples": 0}),
        resume="auto",
    )
    listed = {entry["file"] for entry in json.loads((folder / "best.json").read_text())}
    assert {path.name for path in folder.glob("best-*.ckpt")} == listed
