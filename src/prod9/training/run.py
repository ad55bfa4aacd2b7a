"""Train, validate and test a configuration, with its data module, its adapter and a Lightning Trainer.

The whole run is one Lightning epoch of ``max_steps`` batches, starting at the step of the checkpoint that is
resumed. Seed and step decide which batch comes next, so nothing of Lightning's loops is restored.
"""

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from prod9.config.load import config_to_dict, dump_config
from prod9.config.schema import RunConfig
from prod9.data.splits import Part, Split
from prod9.errors import CheckpointError, ConfigError, DataError
from prod9.json_files import read_object
from prod9.models.checkpoint_manager import CheckpointManager, Header, Opened, Source
from prod9.models.checkpoint_places import keep_input
from prod9.models.run_folder import (
    CHECKPOINTS,
    LAST,
    METRICS,
    append_run,
    holds_run,
    locked,
    peak_memory_gib,
    read_index,
    require_fresh,
    versions,
    write_text,
)
from prod9.system.stopping import Watch, watching
from prod9.training.callbacks import InterruptedTrainingError, build_callbacks
from prod9.training.lightning.base import AbstractLightning, AnyRecipe
from prod9.training.lightning.building import build_data_module as build_data_module
from prod9.training.lightning.building import build_module as build_module
from prod9.training.lightning.building import load_bases as load_bases
from prod9.training.recipes.monitor import monitor_of
from prod9.training.recipes.table import recipe_of
from prod9.training.running.ending import ended_with_a_hint, is_first_rank, say
from prod9.training.running.keeping import settle
from prod9.training.running.slurm import was_requeued
from prod9.training.trainer import build_loggers, build_trainer, quiet

_ENDINGS = (("training", "max_steps"), ("training", "validate_every_steps"), ("callbacks", "early_stopping"))
"""Settings that decide when a run ends."""
_WITHOUT_EFFECT = ("output_dir", "trainer", "callbacks")
"""Sections that change nothing of what is trained."""
_CHOOSING = ("callbacks.checkpoint.monitor", "callbacks.checkpoint.mode", "callbacks.combined_metric")
"""Those of their settings that decide which checkpoint is the best."""

log = logging.getLogger("prod9")


@dataclass(frozen=True)
class RunResult:
    """The result of a run: its best checkpoint, the metrics of its last validation, the steps done, and in words."""

    checkpoint: Path
    metrics: dict[str, float]
    step: int
    headline: str = ""


def train(
    config: RunConfig,
    *,
    resume: str | Path | None = None,
    init_from: str | Path | None = None,
    device: str = "auto",
    max_seconds: float | None = None,
    base: Opened | None = None,
) -> RunResult:
    """Train until ``training.max_steps``.

    Args:
        config: of the run.
        resume: ``auto`` goes on from the last good checkpoint of ``output_dir``, or starts if there is none; a path
            goes on from that run or file. A job that SLURM put back into its queue goes on by itself.
        init_from: start a new run from the weights of another (fine-tuning); with ``auto``, where there is nothing to
            go on from.
        device: ``auto`` leaves it to ``trainer``; else ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        max_seconds: save and stop after this time.
        base: the checkpoint that ``inputs`` names, if it is open already, so that it is not read twice.

    Raises ConfigError, DataError, CheckpointError or TrainingError; InterruptedTrainingError after a signal or at the
    end of the time, having saved.
    """
    if resume is None and was_requeued():
        resume = "auto"
    if resume not in (None, "auto") and init_from is not None:
        raise ConfigError(
            "--resume PATH goes on with a run and --init-from starts a new one: expected one of them, got both."
        )
    output_dir = Path(config.output_dir)
    # Under DDP every rank runs this; the folder belongs to the first.
    with (
        watching(say, max_seconds=max_seconds) as watch,
        ended_with_a_hint(output_dir, watch),
        locked(output_dir) if is_first_rank() else nullcontext(),
    ):
        if resume == "auto":
            watch.again = "the same command"  # as the demo and fine-tuning have it, which know no --resume
        start = _find_start(config, resume)
        if start is None:
            return _train(config, None, init_from, device, watch, base=base)
        finished = _is_finished(config, start.header)
        _warn_of_changes(config, start, finished=finished)
        if finished:
            return _finished(config, start)
        return _train(config, start, None, device, watch, tidies=str(resume) == "auto", base=base)


def validate(
    config: RunConfig, checkpoint: Source | None = None, *, device: str = "auto"
) -> dict[str, float]:
    """Return ``val/…`` metrics of ``checkpoint`` (default: the best of ``output_dir``) on the validation patients."""
    return _evaluate(config, checkpoint, device, "val")


def test(
    config: RunConfig,
    checkpoint: Source | None = None,  # noqa: PT028 (not a pytest function)
    *,
    device: str = "auto",  # noqa: PT028
) -> dict[str, float]:
    """Return ``test/…`` metrics of ``checkpoint`` on the test patients, which no other step reads."""
    return _evaluate(config, checkpoint, device, "test")


# -- training ---------------------------------------------------------------------------------------


def _train(
    config: RunConfig,
    start: Opened | None,
    init_from: str | Path | None,
    device: str,
    watch: Watch,
    *,
    tidies: bool = False,
    base: Opened | None = None,
) -> RunResult:
    began, output_dir = time.monotonic(), Path(config.output_dir)
    if start is None:
        config.require_start(init_from)
    bases = load_bases(config, start, base)
    module = build_module(config, bases)
    if start is not None:
        _require_inputs(start, module)
    if init_from is not None:
        module.start_from(CheckpointManager.open(init_from, stage=config.stage))
    elif start is None:
        module.recipe.begin_anew()
    if is_first_rank():
        write_text(output_dir / "config.yaml", dump_config(config))
        for name, place in module.recipe.kept_inputs().items():
            keep_input(place, name, output_dir)
    step = start.header["step"] if start else 0
    tidies = tidies and start is not None and start.path.name == LAST
    callbacks = build_callbacks(config, module, watch=watch, tidies=tidies)
    trainer = build_trainer(config, device, callbacks, build_loggers(config, step))
    data = build_data_module(config, bases, device=trainer.strategy.root_device)
    # A run that only lacks its last validation takes no step, but needs a loader that is not empty.
    data.set_start_step(min(step, config.training.max_steps - 1))
    with quiet(), _session(config, trainer, module, began, start, init_from):
        trainer.fit(module, datamodule=data, ckpt_path=str(start.path) if start else None)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
    told = module.recipe.headline.sentence(metrics, constants=module.recipe.yardsticks())
    return RunResult(
        CheckpointManager.resolve(output_dir), metrics, module.step, told + _kept(config, module.step)
    )


def _kept(config: RunConfig, step: int) -> str:
    """Return, in words, which weights are kept where they are not those of the last validation, at ``step``."""
    best = read_index(Path(config.output_dir) / CHECKPOINTS)
    if not best or best[0]["step"] == step:
        return ""
    metric = monitor_of(config)[0].removeprefix("val/")
    return f". The weights that are kept are those of step {best[0]['step']}, the best by {metric}"


def _require_inputs(opened: Opened, module: AbstractLightning[AnyRecipe]) -> None:
    """Refuse bases other than those that ``opened`` was trained on (CheckpointError)."""
    for name, given in module.recipe.inputs().items():
        recorded = opened.header["inputs"].get(name)
        if recorded is not None and recorded["sha256"] != given["sha256"]:
            raise CheckpointError(
                f"inputs.{name}: expected the {name} that {opened.path} was trained on (SHA-256 "
                f"{recorded['sha256'][:12]}…), got {given['path']} ({given['sha256'][:12]}…); its tokens mean "
                "something else. Name the right file, or start this stage anew."
            )


def _find_start(config: RunConfig, resume: str | Path | None) -> Opened | None:
    output_dir = Path(config.output_dir)
    if resume is None:
        if is_first_rank():
            require_fresh(output_dir)
        return None
    if str(resume) == "auto":
        if not holds_run(output_dir):
            return None
        resume = output_dir
    opened = CheckpointManager.open(resume, stage=config.stage, prefer="last")
    if opened.path.is_dir():
        raise CheckpointError(
            f"{opened.path}: expected a checkpoint with the state of its training, got an export, which holds weights "
            "alone; start a new run from them with --init-from."
        )
    return opened


def _is_finished(config: RunConfig, header: Header) -> bool:
    """Return whether a run ended, by its steps or without improvement, and its last validation is done."""
    step = header["step"]
    if header.get("validated", step) < step:
        return False
    if step >= config.training.max_steps:
        return True
    before, now = header["config"], config_to_dict(config)
    same = all(before.get(section, {}).get(key) == now[section][key] for section, key in _ENDINGS)
    return header.get("stopped_early", False) and same


def _warn_of_changes(config: RunConfig, start: Opened, *, finished: bool) -> None:
    """Warn of settings that differ from those of ``start``, and say whether they have an effect."""
    changed = ", ".join(sorted(_changed_keys(start.header["config"], config_to_dict(config))))
    if not changed or not is_first_rank():
        return
    if finished:
        log.warning(
            "%s had no effect: the run is finished, and its checkpoints keep the settings that they were trained with. "
            "Train in another folder; settings of the sampler can also be given when generating.",
            changed,
        )
    else:
        log.warning("Resuming with other settings than before: %s.", changed)


def _finished(config: RunConfig, start: Opened) -> RunResult:
    output_dir, step = Path(config.output_dir), start.header["step"]
    why = "all" if step >= config.training.max_steps else "nothing improved any more;"
    if is_first_rank():
        say(f"{config.output_dir} is finished: {why} {step} steps are done.")
        settle(output_dir / CHECKPOINTS, read_index(output_dir / CHECKPOINTS))
    try:
        values = dict(read_object(output_dir / METRICS)["metrics"])
        recorded = {name: math.nan if value is None else float(value) for name, value in values.items()}
    except (DataError, KeyError, TypeError, ValueError):
        recorded = {}
    told = recipe_of(config).headline.sentence(recorded) + _kept(config, step)
    return RunResult(CheckpointManager.resolve(output_dir), recorded, step, told)


def _changed_keys(before: Any, now: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _changed_keys(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif before != now and (prefix.startswith(_CHOOSING) or not prefix.startswith(_WITHOUT_EFFECT)):
        yield prefix


@contextlib.contextmanager
def _session(
    config: RunConfig,
    trainer: Trainer,
    module: AbstractLightning[AnyRecipe],
    began: float,
    start: Opened | None,
    init_from: str | Path | None,
) -> Iterator[None]:
    """Record the session in run.json, however it ends; an error in recording never hides the one that ended the run."""
    outcome = "failed"
    try:
        yield
        outcome = "finished"
    except InterruptedTrainingError:
        outcome = "interrupted"
        raise
    finally:
        if trainer.is_global_zero:
            entry = _session_entry(trainer, module, began, start, init_from)
            try:
                append_run(Path(config.output_dir), {"outcome": outcome, **entry})
            except DataError as error:
                log.warning("The session is not recorded: %s", error)


def _session_entry(
    trainer: Trainer,
    module: AbstractLightning[AnyRecipe],
    began: float,
    start: Opened | None,
    init_from: str | Path | None,
) -> dict[str, Any]:
    device = trainer.strategy.root_device
    cuda = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {
        "from_step": start.header["step"] if start else 0,
        "to_step": module.step,
        "skipped_steps": module.skipped_steps,
        "resumed_from": str(start.path) if start else None,
        "init_from": str(init_from) if init_from is not None else None,
        "seconds": round(time.monotonic() - began, 3),
        "peak_rss_gib": round(peak_memory_gib(), 3),
        "peak_cuda_gib": None if cuda is None else round(cuda, 3),
        "device": str(device),
        "world_size": trainer.world_size,
        "precision": trainer.precision,
        "versions": versions(),
    }


# -- evaluation -------------------------------------------------------------------------------------


def _evaluate(config: RunConfig, checkpoint: Source | None, device: str, part: Part) -> dict[str, float]:
    opened = CheckpointManager.open(checkpoint or config.output_dir, stage=config.stage)
    bases = load_bases(config, opened)
    module = build_module(config, bases)
    _require_inputs(opened, module)
    module.take_trained(opened)
    trainer = build_trainer(config, device, [], [])
    data = build_data_module(config, bases, device=trainer.strategy.root_device)
    _warn_of_leak(opened, data.split, part)
    with quiet():
        (metrics,) = (trainer.validate if part == "val" else trainer.test)(
            module, datamodule=data, verbose=False
        )
    return {name: float(value) for name, value in metrics.items() if "/" in name}


def _warn_of_leak(opened: Opened, split: Split, part: Part) -> None:
    # A warning only: simulated cohorts and other collections reuse patient ids.
    trained = sorted(set(getattr(split, part)) & set(opened.header["split"]["train"]))
    if trained:
        log.warning(
            "%s was trained on %d patients of the %s split (%s …): these scores are too good, unless the ids "
            "belong to other people.", opened.path, len(trained), part, ", ".join(trained[:3]),
        )  # fmt: skip
