"""The cost of robustness: the share of a training step that checks, seeds, skipping and signals take.

``overhead``: time of a step with the guards over that of the same step without, minus 1. The guards are the check that
loss and gradient are finite in all processes, the seeds that make a resumed run reproducible, and the checks for
signals and configured saves. Both kinds of steps alternate within one run.

    python benchmarks/bench_step_guard.py [--quick] [--threads N]
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import _harness
import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from prod9.config.load import config_from_dict
from prod9.config.schema import RunConfig
from prod9.data.splits import Split
from prod9.training.callbacks import build_callbacks
from prod9.training.lightning.building import build_module
from prod9.training.lightning.gan import GANLightning
from prod9.training.trainer import build_trainer, quiet

GUARDS = ("StopOnSignal", "StopAtEnd", "KeepCheckpoints")
"""Callbacks that look at every step."""


def config_of(folder: str, side: int, steps: int) -> RunConfig:
    """Return a stage 1 of three levels on volumes of ``side``³."""
    return config_from_dict(
        {
            "stage": "autoencoder",
            "output_dir": f"{folder}/run",
            "data": {"root": folder, "grid": [side] * 3, "batch_size": 1},
            "model": {
                "levels": [8, 8, 8, 6, 5],
                "num_channels": [16, 32, 64],
                "num_res_blocks": [1, 1, 1],
                "norm_num_groups": 8,
            },
            "loss": {"adversarial": {"start_step": 0, "discriminator": {"channels": 16, "num_layers_d": 2}}},
            "training": {"max_steps": steps, "validate_every_steps": 10 * steps, "log_every_steps": 20},
            "callbacks": {"num_samples": 0},
            "trainer": {"loggers": [], "progress": False, "accelerator": "cpu"},
        },
        source=__file__,
    )


class Constant(LightningDataModule):
    """The same volume at every step: loading takes no time."""

    split = Split(train=("a",), val=("b",), test=())
    reference_affine = np.eye(4)

    def __init__(self, side: int, steps: int) -> None:
        super().__init__()
        self.volume = torch.rand(1, side, side, side, generator=torch.Generator().manual_seed(0))
        self.steps = steps

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the volume as often as there are steps."""
        item = {"image": self.volume, "case_id": "a", "modality": "T1"}
        return DataLoader([item] * self.steps, batch_size=1)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the volume once; no step is validated."""
        return DataLoader([{"image": self.volume, "case_id": "a"}], batch_size=1)  # type: ignore[arg-type]


class Alternate(Callback):
    """Removes the guards on odd steps, and times every step from its beginning to that of the next one."""

    def __init__(self, bench: _harness.Bench) -> None:
        self.now = _harness.CLOCKS[bench.clock]
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self._began: float | None = None
        self._guarded = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the time of the step before, and switch."""
        now = self.now()
        if self._began is not None:
            self.seconds[self._guarded].append(now - self._began)
        self._guarded = batch_idx % 2 == 0
        self._switch(trainer, pl_module)
        self._began = self.now()

    def _switch(self, trainer: Trainer, module: Any) -> None:
        for callback in trainer.callbacks:
            name = type(callback).__name__
            if name in GUARDS:
                if self._guarded:
                    callback.__dict__.pop("on_train_batch_end", None)
                else:
                    callback.on_train_batch_end = _nothing
        for name, plain in (("clip_or_raise", _clip), ("_seed_step", _seed)):
            if self._guarded:
                module.__dict__.pop(name, None)
            else:
                object.__setattr__(module, name, plain.__get__(module))


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _clip(self: GANLightning, optimizer: Any, loss: Any = None) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    torch.nn.utils.clip_grad_norm_(parameters, self.config.training.gradient_clip_norm)


def _seed(self: GANLightning) -> torch.Generator:
    return torch.Generator(self.device)


def main() -> None:
    bench = _harness.start("bench_step_guard", __doc__)
    side, steps = (24, 80) if bench.quick else (40, 160)
    with tempfile.TemporaryDirectory() as folder:
        # One step more than is taken: no validation at the end.
        config = config_of(folder, side, steps + 1)
        module, timer = build_module(config), Alternate(bench)
        callbacks = [timer, *build_callbacks(config, module)]
        trainer = build_trainer(config, "cpu", callbacks, [])
        Path(config.output_dir).mkdir()
        with quiet():
            trainer.fit(module, datamodule=Constant(side, steps))
    # Neighbours are compared: a machine that slows down slows both.
    pairs = list(zip(timer.seconds[True][2:], timer.seconds[False][2:], strict=False))
    bench.seconds = {
        "guarded": statistics.median(pair[0] for pair in pairs),
        "plain": statistics.median(pair[1] for pair in pairs),
    }
    bench.runs, bench.sizes = len(pairs), {"side": side, "channels": [16, 32, 64]}
    for name, median in bench.seconds.items():
        print(f"{bench.name}: {name:<40} {median * 1e3:10.2f} ms", flush=True)
    bench.value("overhead", statistics.median(ours / plain for ours, plain in pairs) - 1)
    bench.report(["lightning"])


if __name__ == "__main__":
    main()
