"""KeepCheckpoints: the last states of a run and its best ones, and what its validations measured."""

import logging
import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from prod9.errors import ConfigError
from prod9.json_files import write_json
from prod9.models.checkpoint_file import LAST, link_checkpoint, remove_checkpoint
from prod9.models.run_folder import METRICS, find_checkpoints, write_index
from prod9.training.lightning.base import AbstractLightning

log = logging.getLogger("prod9")
_SLIP = 0.9
"""How alike two names are, of 1, when one is a slip for the other."""
Entry = dict[str, Any]
"""A best checkpoint: ``file``, ``step``, ``value``."""

_CODEBOOK = ("codebook_usage", "perplexity")
_RECONSTRUCTION = ("psnr", "psnr_brain", "ssim", "l1", "lpips", "combined_metric")
_SAMPLES = ("fid", "kid", "inception_score", "region_contrast", "foreground_dice")
_CONTROL = (
    "loss", "loss_base", "loss_region", "loss_region_base", "classifier_accuracy",
    *_SAMPLES, *(f"{name}_base" for name in _SAMPLES),
)  # fmt: skip
METRIC_NAMES: dict[str, tuple[str, ...]] = {
    "autoencoder": (*_RECONSTRUCTION, *_CODEBOOK),
    "maisi_vae": (*_RECONSTRUCTION, "kl", "latent_std"),
    "transformer": ("loss", "accuracy", "loss_low_mask", "loss_high_mask", "sample_distance"),
    "maisi_diffusion": ("loss", "loss_near_data", "loss_near_noise", "sample_distance"),
    "refiner": (
        "psnr",
        "psnr_fitted",
        "ssim",
        "psnr_fitted_decoded",
        "psnr_fitted_sources",
        "expected_error",
        "error",
    ),
    "maskgit_controlnet": (*_CONTROL, "accuracy", "accuracy_base", "accuracy_region", "accuracy_region_base"),
    "maisi_controlnet": _CONTROL,
}
"""What a validation of each stage usually measures, without ``val/``; one of each level or region may come on top."""


def check_monitor(monitor: str, stage: str) -> None:
    """Refuse, before anything starts, a metric that no validation of ``stage`` will measure by that name.

    Not every validation measures everything, so a name that is not close to one of the usual names is believed.
    """
    names = [f"val/{name}" for name in METRIC_NAMES[stage]]
    known = {f"val/{name}" for stage_names in METRIC_NAMES.values() for name in stage_names}
    slips = get_close_matches(monitor, names, n=1, cutoff=_SLIP)
    if monitor not in known and (slips or not monitor.startswith("val/")):
        hint = f"; did you mean {slips[0]!r}?" if slips else "; choose one."
        raise ConfigError(
            f"callbacks.checkpoint.monitor: expected one of {', '.join(names)}, got {monitor!r}{hint}"
        )


def rank(entries: list[Entry], mode: str) -> list[Entry]:
    """Return ``entries`` best first, those of equal value in order of their steps; NaN is no value and left out."""
    finite = [entry for entry in entries if not math.isnan(entry["value"])]
    sign = -1.0 if mode == "max" else 1.0
    return sorted(finite, key=lambda entry: (sign * entry["value"], entry["step"]))


class KeepCheckpoints(Checkpoint):
    """Keeps ``last.ckpt``, the one before it, and the best ``save_top_k`` by a monitored metric.

    Saves after every validation, and every ``every_steps`` steps where that is set. ``best.json`` lists the
    best ones, best first; ``metrics.json`` beside the folder holds what the last validation measured. tidies: whether
    best checkpoints that are in no ranking are deleted at the start.
    """

    def __init__(
        self, *, folder: Path, monitor: str, mode: str, save_top_k: int = 1, every_steps: int | None = None
    ) -> None:
        self.folder = folder
        self.monitor = monitor
        self.mode = mode
        self.save_top_k = save_top_k
        self.every_steps = every_steps
        self.best: list[Entry] = []
        self.tidies = False
        self._new_best: Entry | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delete best checkpoints that a kill left between two files, where the run goes on from its last one."""
        if trainer.is_global_zero and self.tidies:
            settle(self.folder, self.best)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save ``last`` on the configured steps."""
        if self.every_steps and cast(AbstractLightning, pl_module).step % self.every_steps == 0:
            self.save_last(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what earlier validations measured: Lightning would show it as measured by this one."""
        for name in [name for name in trainer.callback_metrics if name.startswith("val/")]:
            del trainer.callback_metrics[name]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save ``last``, and keep it if it is among the best. Averaged weights are swapped out by now.

        The order is such that a kill in between costs nothing: ``last`` says that this validation is done, and takes
        its name when all the rest is on the disk.
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
        self._new_best = entry if entry in self.best else None
        module.validated = module.step
        module.stopped_early = trainer.should_stop and module.step < module.config.training.max_steps
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
        """Write ``last.ckpt`` on all ranks' behalf; after a validation that gave a best one, under that name too."""
        entry, self._new_best = self._new_best, None
        if entry is None:
            trainer.save_checkpoint(self.folder / LAST)
            return
        trainer.save_checkpoint(self.folder / entry["file"])
        if trainer.is_global_zero:
            write_index(self.folder, self.best)
            link_checkpoint(self.folder / entry["file"], self.folder / LAST, keep_previous=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the ranking, so that a resumed run goes on comparing."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the ranking of files that still exist."""
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


def settle(folder: Path, best: list[Entry]) -> None:
    """Let the index and the best checkpoints in ``folder`` be those of the ranking, no more and no fewer."""
    names = {entry["file"] for entry in best}
    if not names:
        return  # without a ranking, nothing tells which of them are good
    write_index(folder, best)
    for path in find_checkpoints(folder):
        if path.name.startswith("best-step=") and path.name not in names:
            remove_checkpoint(path)
