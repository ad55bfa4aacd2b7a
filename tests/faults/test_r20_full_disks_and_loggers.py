"""A full disk never hides the error that matters, never empties a log, and loggers never end a run."""

import csv
import errno
from pathlib import Path

import pytest

from prod9.errors import DataError
from prod9.models import checkpoint_file
from prod9.training import run as run_module
from prod9.training.lightning.json_lines import JSONLinesLogger
from prod9.training.lightning.steady_loggers import SteadyCSVLogger, SteadyLogger
from prod9.training.run import train

FULL = OSError(errno.ENOSPC, "No space left on device")


def full(*args, **kwargs):
    raise FULL


def test_r20_the_session_record_does_not_hide_the_checkpoint(make_config, memory_data, monkeypatch, caplog):
    config = make_config("autoencoder", "run", callbacks={"checkpoint": {"every_steps": 2}, "num_samples": 0})

    def no_quota(content, target):
        if content["prod9"]["step"] == 4:
            Path(target).write_bytes(b"half")
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return save(content, target)

    save = checkpoint_file.torch.save
    monkeypatch.setattr(checkpoint_file.torch, "save", no_quota)
    monkeypatch.setattr(run_module, "append_run", lambda *_: (_ for _ in ()).throw(DataError("run.json: no")))
    with pytest.raises(DataError, match=r"ckpt: cannot be written \(.*quota.*written before are whole"):
        train(config)
    assert "The session is not recorded" in caplog.text
    monkeypatch.setattr(checkpoint_file.torch, "save", save)
    monkeypatch.undo()


def test_r20_a_run_ends_well_though_its_record_cannot_be_written(
    make_config, memory_data, monkeypatch, caplog
):
    monkeypatch.setattr(run_module, "append_run", lambda *_: (_ for _ in ()).throw(DataError("run.json: no")))
    config = make_config("autoencoder", "run", training={"max_steps": 2}, callbacks={"num_samples": 0})
    assert train(config).step == 2
    assert "not recorded" in caplog.text


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_r20_metrics_csv_holds_the_old_rows_or_the_new(tmp_path, monkeypatch):
    logger = SteadyCSVLogger(tmp_path, name="csv", version="s")
    logger.log_metrics({"a": 1.0}, step=1)
    logger.save()
    path = tmp_path / "csv" / "s" / "metrics.csv"
    before = path.read_text()

    logger.log_metrics({"a": 2.0}, step=2)
    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerows", full)
        with pytest.raises(OSError, match="No space"):
            logger.save()
        assert path.read_text() == before
        logger.log_metrics({"b": 3.0}, step=3)  # a new column: the whole file is written again
        with pytest.raises(DataError, match="No space"):
            logger.save()
        assert path.read_text() == before
    logger.save()
    assert [row["step"] for row in rows(path)] == ["1", "2", "3"]
    assert [row["b"] for row in rows(path)] == ["", "", "3.0"]
    assert not list(path.parent.glob(".tmp-*"))


def test_r20_a_session_that_begins_at_the_same_step_goes_on_in_its_file(tmp_path):
    for step in (1, 2):
        logger = SteadyCSVLogger(tmp_path, name="csv", version="s")
        logger.log_metrics({"a" if step == 1 else "b": float(step)}, step=step)
        logger.save()
    assert [row["step"] for row in rows(tmp_path / "csv" / "s" / "metrics.csv")] == ["1", "2"]


def test_r20_a_line_of_json_is_whole_or_not_there(tmp_path, monkeypatch):
    logger = JSONLinesLogger(tmp_path / "metrics.jsonl")
    logger.log_metrics({"a": 1.0}, step=1)
    before = logger.path.read_text()

    class Half:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.file.write(text[:5])
            self.file.flush()
            raise FULL

    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *a, **k: Half(opened(self, *a, **k)))
        with pytest.raises(OSError, match="No space"):
            logger.log_metrics({"a": 2.0}, step=2)
    assert logger.path.read_text() == before


@pytest.mark.parametrize("loggers", [["csv"], ["tensorboard"], ["jsonl"], ["csv", "tensorboard", "jsonl"]])
def test_r20_loggers_that_cannot_write_do_not_end_a_run(loggers, make_config, memory_data, caplog, capfd):
    config = make_config(
        "autoencoder",
        "run",
        trainer={"loggers": loggers, "progress": False, "accelerator": "cpu"},
        training={"log_every_steps": 1},
        callbacks={"num_samples": 0},
    )
    logs = Path(config.output_dir) / "logs"
    logs.mkdir(parents=True)
    for name in ("csv", "tensorboard", "metrics.jsonl"):
        (logs / name).mkdir() if name == "metrics.jsonl" else (logs / name).write_text("in the way")
    assert train(config).step == 6
    assert caplog.text.count("training goes on without its values") == len(loggers)
    assert "Traceback" not in capfd.readouterr().err


def test_r20_a_disk_that_fills_up_under_tensorboard(make_config, memory_data, monkeypatch, caplog, capfd):
    from tensorboard.summary.writer.record_writer import RecordWriter

    monkeypatch.setattr(RecordWriter, "write", full)
    config = make_config(
        "autoencoder",
        "run",
        trainer={"loggers": ["tensorboard"], "progress": False, "accelerator": "cpu"},
        training={"log_every_steps": 1},
        callbacks={"num_samples": 0},
    )
    assert train(config).step == 6
    assert "No space left" in caplog.text
    assert "Traceback" not in capfd.readouterr().err


def test_r20_a_logger_says_it_once(caplog):
    class Broken(SteadyCSVLogger):
        log_metrics = full  # type: ignore[assignment]

    logger = SteadyLogger(Broken("nowhere"))
    for step in range(5):
        logger.log_metrics({"a": 1.0}, step=step)
    assert caplog.text.count("cannot write") == 1
