"""Whatever asks a run to stop saves it once and says how to go on, from the first second."""

import json
import os
import signal
import stat
import threading
import time
from pathlib import Path

import pytest
import torch

from prod9.errors import ConfigError
from prod9.models.checkpoint_file import read_checkpoint
from prod9.system.stopping import SIGNALS, StopNow, Watch, watching
from prod9.training.callbacks import InterruptedTrainingError
from prod9.training.lightning.base import AbstractLightning
from prod9.training.run import train
from tests.harness import run, write_configs
from tests.training.tiny import MemoryData

JOB = {
    "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "brains", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "node1",
}  # fmt: skip


@pytest.fixture(autouse=True)
def signals_of_a_terminal():
    """Handlers as in a terminal: under ``nohup`` and in the background shells ignore some of them."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    for signum in SIGNALS:
        usual = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
        signal.signal(signum, usual)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A job of SLURM with an ``scontrol`` that notes what it was called with."""
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (tools / "scontrol").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return calls


def kill_at(monkeypatch, step, *signums):
    finish = AbstractLightning.training_step

    def training_step(self, batch, batch_idx):
        finish(self, batch, batch_idx)
        if self.step == step:
            for signum in signums:
                os.kill(os.getpid(), signum)

    monkeypatch.setattr(AbstractLightning, "training_step", training_step)


def step_of(config) -> int:
    return read_checkpoint(Path(config.output_dir) / "checkpoints" / "last.ckpt")[0]["prod9"]["step"]


@pytest.mark.parametrize("signum", SIGNALS)
def test_r3_every_signal_saves_once_and_says_how_to_go_on(signum, make_config, memory_data, monkeypatch):
    handlers = {s: signal.getsignal(s) for s in SIGNALS}
    config = make_config("autoencoder", "run", callbacks={"num_samples": 0})
    kill_at(monkeypatch, 3, signum)
    with pytest.raises(
        InterruptedTrainingError, match=rf"{signal.Signals(signum).name} after step 3 .*--resume"
    ) as e:
        train(config)
    assert e.value.exit_code == 128 + signum
    assert step_of(config) == 3
    assert not (Path(config.output_dir) / "checkpoints" / "previous.ckpt").exists()
    assert {s: signal.getsignal(s) for s in SIGNALS} == handlers


@pytest.mark.parametrize("step", [0, 2])
def test_r3_commands_that_go_on_by_themselves_ask_for_no_option(step, make_config, memory_data, monkeypatch):
    config = make_config("autoencoder", "run", callbacks={"num_samples": 0})
    if step:
        kill_at(monkeypatch, step, signal.SIGINT)
    else:
        monkeypatch.setattr(MemoryData, "setup", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(InterruptedTrainingError, match=r"the same command goes on from (t?here)") as e:
        train(config, resume="auto")  # as the demo and fine-tuning do, which have no --resume
    assert "--resume" not in str(e.value)


def test_r3_nohup_is_respected(make_config, memory_data, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        kill_at(monkeypatch, 2, signal.SIGHUP)
        config = make_config("autoencoder", "run", training={"max_steps": 3}, callbacks={"num_samples": 0})
        assert train(config).step == 3
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2])
def test_r2_a_job_is_saved_put_back_and_goes_on_by_itself(
    signum, job, make_config, memory_data, monkeypatch, last_state
):
    config, whole = (make_config("autoencoder", n, callbacks={"num_samples": 0}) for n in ("run", "whole"))
    with monkeypatch.context() as patch:
        kill_at(patch, 3, signum)
        with pytest.raises(InterruptedTrainingError, match="Job 4711 is back in the queue") as caught:
            train(config)
    assert caught.value.exit_code == 128 + signum
    assert job.read_text() == "requeue 4711\n"
    assert step_of(config) == 3
    assert not list(Path(config.output_dir).rglob("hpc_ckpt*"))

    with pytest.raises(ConfigError, match="--resume"):
        train(config)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert train(config).step == 6
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    train(whole)
    a, b = (last_state(Path(c.output_dir))["state_dict"] for c in (config, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_r2_a_requeued_job_without_a_checkpoint_starts(job, make_config, memory_data, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    config = make_config("autoencoder", "run", training={"max_steps": 2}, callbacks={"num_samples": 0})
    assert train(config).step == 2


def test_r2_what_lightning_left_of_an_older_version_is_not_taken(job, make_config, memory_data):
    config = make_config("autoencoder", "run", training={"max_steps": 2}, callbacks={"num_samples": 0})
    Path(config.output_dir).mkdir()
    for name in ("hpc_ckpt_1.ckpt", "hpc_ckpt_1.ckpt.sha256"):
        (Path(config.output_dir) / name).write_bytes(b"left by a preemption")
    assert train(config).step == 2


def test_r2_a_task_of_an_array_is_put_back_by_its_own_number(job, make_config, memory_data, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "80")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    kill_at(monkeypatch, 1, signal.SIGUSR1)
    with pytest.raises(InterruptedTrainingError, match="Job 80_3 is back"):
        train(make_config("autoencoder", "run", callbacks={"num_samples": 0}))
    assert job.read_text() == "requeue 80_3\n"


def test_r2_cancelling_a_job_does_not_put_it_back(job, make_config, memory_data, monkeypatch):
    kill_at(monkeypatch, 1, signal.SIGTERM)
    with pytest.raises(InterruptedTrainingError):
        train(make_config("autoencoder", "run", callbacks={"num_samples": 0}))
    assert not job.exists()


def test_r2_a_queue_that_refuses_is_said_and_the_save_stays(
    job, make_config, memory_data, monkeypatch, tmp_path
):
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho access denied >&2\nexit 1\n")
    config = make_config("autoencoder", "run", callbacks={"num_samples": 0})
    kill_at(monkeypatch, 1, signal.SIGUSR1)
    with pytest.raises(InterruptedTrainingError, match=r"--resume.*could not be put back .*access denied"):
        train(config)
    assert step_of(config) == 1


@pytest.mark.parametrize("signum", SIGNALS)
def test_r19_before_the_first_step_it_ends_at_once_with_the_hint(
    signum, make_config, memory_data, monkeypatch
):
    def interrupt(self, *args, **kwargs):
        os.kill(os.getpid(), signum)
        time.sleep(5)  # caching and encoding take hours
        raise AssertionError("went on")

    monkeypatch.setattr(MemoryData, "setup", interrupt)
    config = make_config("autoencoder", "run", callbacks={"num_samples": 0})
    with pytest.raises(InterruptedTrainingError, match=r"no checkpoint yet.*--resume") as caught:
        train(config)
    assert caught.value.exit_code == 128 + signum
    assert not (Path(config.output_dir) / ".lock").exists()


def test_r19_the_second_ctrl_c_stops_at_once_with_a_message(make_config, memory_data, monkeypatch):
    config = make_config("autoencoder", "run", callbacks={"checkpoint": {"every_steps": 2}, "num_samples": 0})
    kill_at(monkeypatch, 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(
        InterruptedTrainingError, match=r"second Ctrl-C, without saving.*last\.ckpt.*--resume"
    ) as e:
        train(config)
    assert e.value.exit_code == 130
    assert step_of(config) == 2
    kill = signal.getsignal(signal.SIGINT)
    assert kill not in (signal.SIG_IGN, None)


def test_r19_another_signal_twice_is_still_one_save(make_config, memory_data, monkeypatch):
    config = make_config("autoencoder", "run", callbacks={"num_samples": 0})
    kill_at(monkeypatch, 3, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP)
    with pytest.raises(InterruptedTrainingError, match="SIGTERM after step 3"):
        train(config)
    assert step_of(config) == 3


def test_r19_a_keyboard_interrupt_that_lightning_made_an_exit(make_config, memory_data, monkeypatch):
    def interrupt(self, batch, batch_idx):
        raise KeyboardInterrupt

    monkeypatch.setattr(AbstractLightning, "training_step", interrupt)
    with pytest.raises(InterruptedTrainingError, match="--resume") as caught:
        train(make_config("autoencoder", "run", callbacks={"num_samples": 0}))
    assert caught.value.exit_code == 130


def test_r3_the_time_limit_saves(make_config, memory_data, monkeypatch):
    finish = AbstractLightning.training_step

    def slow(self, batch, batch_idx):
        finish(self, batch, batch_idx)
        time.sleep(0.05)

    monkeypatch.setattr(AbstractLightning, "training_step", slow)
    config = make_config("autoencoder", "run", training={"max_steps": 10_000}, callbacks={"num_samples": 0})
    with pytest.raises(InterruptedTrainingError, match=r"the time limit after step \d+ .*--resume") as caught:
        train(config, max_seconds=1.0)
    assert caught.value.exit_code == 130
    assert 0 < step_of(config) < 1000


def test_r3_the_time_limit_holds_before_the_first_step_too(make_config, memory_data, monkeypatch):
    monkeypatch.setattr(MemoryData, "setup", lambda *_, **__: time.sleep(30))
    began = time.monotonic()
    with pytest.raises(InterruptedTrainingError, match=r"the time limit.*no checkpoint yet"):
        train(make_config("autoencoder", "run"), max_seconds=0.5)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("text", ["90", "", "-5m", "5 minutes", "1:2", "0m", "nan", "1e9h", "0:00:00"])
def test_r3_a_time_that_is_none_is_refused(text, tmp_path):
    config, _ = write_configs(tmp_path)
    ran = run("prod9-train-autoencoder", "train", "--config", config, f"--max-time={text}")
    assert ran.code == 2
    assert "--max-time" in ran.err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90m", 5400),
        ("11h30m", 41400),
        ("01:30:00", 5400),
        ("1-12:00:00", 129600),
        ("1.5h", 5400),
        ("2:30", 9000),
    ],
)
def test_r3_times_are_read(text, seconds):
    from prod9.cli.stage import parse_time

    assert parse_time(text) == seconds


def test_r3_encoding_stops_at_a_signal_and_goes_on(workspace, tmp_path, monkeypatch):
    from prod9.data.stores import shards

    args = ["prod9", "encode", "--config", workspace.stage2, "--output-dir", tmp_path / "run", "--json"]
    add, seen = shards.ShardWriter.add, []

    def stop_at_the_second(self, *rest):
        add(self, *rest)
        seen.append(1)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "add", stop_at_the_second)
        stopped = run(*args)
    assert stopped.code == 143
    assert "the same command goes on" in stopped.err
    kept = len(json.loads((tmp_path / "run" / "store" / "manifest.json").read_text())["items"])
    assert kept == 2
    assert run(*args).json["items"] > kept


def test_r3_only_the_process_that_watches_takes_signals():
    with watching() as watch:
        pid = os.fork()
        if pid == 0:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGUSR1)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        pid = os.fork()
        if pid == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        assert watch.asked is None


def test_r3_another_thread_watches_nothing():
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with watching(max_seconds=100) as watch:
                assert watch.asked is None
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures


def test_r19_a_signal_while_a_line_is_printed_is_not_lost():
    def busy(_: str) -> None:
        raise RuntimeError("reentrant call")

    watch = Watch(busy)
    watch.gentle = True
    watch.note(signal.SIGTERM)
    assert watch.asked == signal.SIGTERM
    with pytest.raises(StopNow):
        watch.note(signal.SIGINT)
