"""KeepCheckpoints: keeps the last states of a run, its best ones, and the metrics of its last validation."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from prod9.json_files import write_json
from prod9.models.checkpoint_file import (
    LAST,
    link_checkpoint,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)
from prod9.models.run_folder import METRICS, find_checkpoints, write_index
from prod9.models.weak import EARLY
from prod9.system.folders import finals
from prod9.training.lightning.base import AbstractLightning

log = logging.getLogger("prod9")
Entry = dict[str, Any]
"""A best checkpoint: ``file``, ``step``, ``value``."""


def rank(entries: list[Entry], mode: str) -> list[Entry]:
    """Return ``entries``, best first, equal values in order of their steps, without those whose value is NaN."""
    finite = [entry for entry in entries if not math.isnan(entry["value"])]
    sign = -1.0 if mode == "max" else 1.0
    return sorted(finite, key=lambda entry: (sign * entry["value"], entry["step"]))


class KeepCheckpoints(Checkpoint):
    """Keeps ``last.ckpt``, the one before it, and the best ``save_top_k`` by a monitored metric.

    Saves after every validation. ``best.json`` lists the best ones, best first; ``metrics.json`` beside the folder
    holds what the last validation measured.

    Args:
        folder: of the checkpoints.
        monitor: the metric that ranks them.
        mode: ``min`` or ``max``.
        save_top_k: how many of the best ones are kept.
        every_steps: save also after this number of steps.
        early_step: keep the weights of this step in a file of their own, for autoguidance; None for no such file.
        tidies: delete best checkpoints that are in no ranking when the training starts.
        weights: of the parts of the metric, where it has some; with other ones its values mean something else.
    """

    def __init__(
        self,
        *,
        folder: Path,
        monitor: str,
        mode: str,
        save_top_k: int = 1,
        every_steps: int | None = None,
        early_step: int | None = None,
        tidies: bool = False,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.folder = folder
        self.monitor = monitor
        self.mode = mode
        self.save_top_k = save_top_k
        self.every_steps = every_steps
        self.early_step = early_step
        self.best: list[Entry] = []
        self.tidies = tidies
        self.ranked_by = {"monitor": monitor, "mode": mode, "weights": dict(weights or {})}
        self._new_best: Entry | None = None
        self._outdated: list[Entry] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delete best checkpoints that are in no ranking because the run was killed before it wrote the ranking.

        A run that starts from trained weights (``--init-from``) keeps no early ones: they are not weaker.
        """
        module = cast(AbstractLightning, pl_module)
        if module.step == 0 and not module.fresh:
            self.early_step = None
        if trainer.is_global_zero and self.tidies:
            settle(self.folder, self.best)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save ``last`` after the configured steps, and the early weights once."""
        step = cast(AbstractLightning, pl_module).step
        if step == self.early_step:
            self._save_early(trainer, step)
        if self.every_steps and step % self.every_steps == 0:
            self.save_last(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the metrics of earlier validations: Lightning would show them as those of this one."""
        for name in [name for name in trainer.callback_metrics if name.startswith("val/")]:
            del trainer.callback_metrics[name]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``last``, and keep it if it is among the best. Averaged weights are swapped out by now.

        The run may be killed between any two of these steps: ``last``, which records that this validation is done, is
        put in place when everything else is on the disk.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        module = cast(AbstractLightning, pl_module)
        entry = {
            "file": f"best-step={module.step:06d}.ckpt",
            "step": module.step,
            "value": self._value(trainer),
        }
        ranked = rank([*(e for e in self.best if e["step"] != module.step), entry], self.mode)
        dropped, self.best = ranked[self.save_top_k :], ranked[: self.save_top_k]
        if self.best:
            dropped += [old for old in self._outdated if old["step"] != module.step]
            self._outdated = []
        self._new_best = entry if entry in self.best else None
        module.note_validation(stopping=trainer.should_stop)
        if trainer.is_global_zero:
            values = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
            content = {"step": module.step, "metrics": values, "monitor": self.monitor, "best": self.best}
            write_json(self.folder.parent / METRICS, content)
        self.save_last(trainer)
        if trainer.is_global_zero:
            write_index(self.folder, self.best)
            for loser in dropped:
                remove_checkpoint(self.folder / loser["file"])
        # No rank may go on to read what the first is still renaming.
        trainer.strategy.barrier("KeepCheckpoints")

    def save_last(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``, on all ranks together; after a validation that gave a best one, under that name too."""
        entry, self._new_best = self._new_best, None
        if entry is None:
            trainer.save_checkpoint(self.folder / LAST)
            return
        trainer.save_checkpoint(self.folder / entry["file"])
        if trainer.is_global_zero:
            write_index(self.folder, self.best)
            link_checkpoint(self.folder / entry["file"], self.folder / LAST, keep_previous=True)

    def _save_early(self, trainer: Trainer, step: int) -> None:
        """Keep the weights of ``step``, averaged where there is an average, without the state of their training."""
        path = self.folder / EARLY.format(step=step)
        # All ranks save together; the average replaces the weights only in a whole checkpoint.
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            content, _ = read_checkpoint(path)
            write_checkpoint({name: content[name] for name in ("prod9", "state_dict")}, path)
            for other in finals(self.folder, "early-step=*.ckpt"):
                if other != path:  # of a run that ended before it had anything to go on from
                    remove_checkpoint(other)
        trainer.strategy.barrier("KeepCheckpoints early")

    def state_dict(self) -> dict[str, Any]:
        """Return the ranking, so that a resumed run goes on comparing."""
        return {"best": self.best, "ranked_by": self.ranked_by}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the ranking of files that still exist, unless it is one by another metric."""
        before = state_dict.get("ranked_by", self.ranked_by)
        if before != self.ranked_by:
            log.warning(
                "callbacks.checkpoint: the best checkpoints were ranked by %s; the ranking by %s begins anew, and "
                "its first one replaces those before.",
                _in_words(before),
                _in_words(self.ranked_by),
            )
            self._outdated = state_dict["best"]
            return
        there = [entry for entry in state_dict["best"] if (self.folder / entry["file"]).is_file()]
        self.best = rank(there, self.mode)

    def _value(self, trainer: Trainer) -> float:
        """Return the monitored metric, NaN where this validation did not measure it."""
        metrics = trainer.callback_metrics
        value = float(metrics[self.monitor]) if self.monitor in metrics else math.nan
        if math.isnan(value) and trainer.is_global_zero:
            names = ", ".join(sorted(name for name in metrics if "/" in name))
            got = (
                "NaN"
                if self.monitor in metrics
                else f"no such metric in this validation (there are: {names})"
            )
            log.warning(
                "callbacks.checkpoint.monitor: expected a value of %s, got %s; the checkpoint is kept as the last one "
                "and is not among the best.",
                self.monitor,
                got,
            )
        return value


def _in_words(ranked_by: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{name} {weight:g}" for name, weight in ranked_by["weights"].items())
    return f"{ranked_by['monitor']} ({ranked_by['mode']}{', ' * bool(parts)}{parts})"


def settle(folder: Path, best: list[Entry]) -> None:
    """Make the index and the best checkpoints in ``folder`` exactly those of the ranking."""
    names = {entry["file"] for entry in best}
    if not names:
        return  # without a ranking, any of them may be good
    write_index(folder, best)
    for path in find_checkpoints(folder):
        if path.name.startswith("best-step=") and path.name not in names:
            remove_checkpoint(path)
