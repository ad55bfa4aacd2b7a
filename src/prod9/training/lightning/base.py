"""What the Lightning adapters share: steps, seeds, learning rates, and surviving a bad batch.

An adapter owns the networks and optimizers and asks an algorithm class for losses; it holds no loss
arithmetic. A *step* is one training batch. Lightning counts optimizer steps instead, two a batch in a GAN, so
its counters are not used: ``AbstractLightning.step`` drives learning rate, limits, logs and file names, and
is what a checkpoint stores.
"""

import logging
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from prod9.config.schema import RunConfig
from prod9.errors import CheckpointError, ConfigError, TrainingError
from prod9.models.checkpoint_manager import Header, Opened, load_strictly, make_header, weights_of
from prod9.training.algorithms.tally import Tally
from prod9.training.optimizers import build_optimizer
from prod9.training.schedules import learning_rate_factor
from prod9.training.sharding import own_part, whole

Batch = dict[str, Any]
T = TypeVar("T")
log = logging.getLogger("prod9")


@dataclass(frozen=True)
class Panel:
    """One volume of a picture: ``data`` float32 ``[H W D]`` in [0, 1] on the CPU, under ``title``."""

    title: str
    data: np.ndarray


class Unregistered(Generic[T]):
    """Holds something that must stay out of the module tree: not saved, not averaged, not synchronised.

    Weight averaging deep-copies the adapter; the content is shared with the copy instead.
    """

    def __init__(self, content: T) -> None:
        self.content = content

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unregistered[T]":
        return self


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the step is skipped."""


class AbstractLightning(LightningModule, ABC):
    """A training run of one stage. ``monitor``: the metric that picks checkpoints, and its direction."""

    monitor: tuple[str, str]
    algorithm: Any

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.step = 0
        self.skipped_steps = 0
        self.skipped_in_row = 0
        # The step of the last whole validation; None where a checkpoint of an older version does not say.
        self.validated: int | None = 0
        self.stopped_early = False
        self.fresh = True
        self.latest: dict[str, float] = {}
        self._tally = Tally()
        self._unmeasured = False

    # -- what a final class supplies ---------------------------------------------------------------

    @abstractmethod
    def optimise(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Do one training step and return what is worth logging; raises NonFiniteError to skip it."""

    @abstractmethod
    def tally(self, batch: Batch, batch_idx: int) -> Tally:
        """Return what one held-out batch adds to the scores of the held-out set."""

    @abstractmethod
    def sample_validation(self, num_samples: int) -> list[list[Panel]]:
        """Return rows of volumes worth looking at; may log what they measure."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """Return the ``architecture`` of the checkpoint header."""

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """Return the networks by their state-dict prefix, the main one first."""

    @abstractmethod
    def peak_rates(self) -> list[float]:
        """Return the peak learning rate of each optimizer."""

    def inputs(self) -> dict[str, dict[str, str]]:
        """Return the earlier stages this one builds on, for the header."""
        return {}

    # -- Lightning's hooks --------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Run one step with its own seed and learning rate; a non-finite one is skipped and counted."""
        generator = self._seed_step()
        rate = self._set_learning_rates()
        try:
            values = self.optimise(batch, generator)
        except NonFiniteError as error:
            self._skip(batch, error)
            values = {}
        else:
            self.skipped_in_row = 0
            self.fresh = False
        self.step += 1
        if values and self.step % self.config.training.log_every_steps == 0:
            # One transfer to the host per logged step, not per step.
            self.log_values({f"train/{k}": float(v) for k, v in values.items()} | {"learning_rate": rate})

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what the batch adds to the ``val/…`` metrics."""
        self._count("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what the batch adds to the ``test/…`` metrics."""
        self._count("test", batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the ``val/…`` metrics, of all batches and ranks together.

        At the number of batches trained; Lightning would put them one earlier.
        """
        self.log("step", float(self.step))
        self._log_tally("val")

    def on_test_epoch_end(self) -> None:
        """Log the ``test/…`` metrics, of all batches and ranks together."""
        self._log_tally("test")

    def on_train_start(self) -> None:
        """Tell Lightning's batch counter the steps done before: validations then fall on the same steps."""
        self.trainer.fit_loop.epoch_loop.batch_progress.total.ready = self.step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the header; refuse, on all ranks, to save weights that are not finite."""
        weights = {k: own_part(v) for k, v in checkpoint["state_dict"].items() if v.is_floating_point()}
        bad = [name for name, value in weights.items() if not value.isfinite().all()]
        if not self.trainer.strategy.reduce_boolean_decision(not bad, all=True):
            where = ", ".join(bad[:3]) or "what another process holds"
            raise TrainingError(
                f"Step {self.step}: expected finite weights, got NaN or infinity in {where}; "
                "nothing was saved. Resume from the last checkpoint with a lower learning rate."
            )
        checkpoint["prod9"] = self.header()
        checkpoint["prod9_run"] = {
            "skipped_steps": self.skipped_steps,
            "skipped_in_row": self.skipped_in_row,
            "fresh": self.fresh,
            "conditions": conditions_of(self.trainer),
            "content": self._content(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the step over and discard Lightning's loop state; refuse other networks or patients."""
        header = cast(Header, checkpoint["prod9"])
        if header["architecture"] != self.architecture():
            raise CheckpointError(
                f"{self.config.output_dir}: expected a checkpoint of the configured architecture, got another "
                f"({_difference(header['architecture'], self.architecture())}); restore the setting, or "
                "start in a new output_dir."
            )
        if header["split"] != cast(Any, self.trainer).datamodule.split.to_dict():
            raise CheckpointError(
                f"{self.config.output_dir}: expected the patients that the checkpoint was trained with, got another "
                "division of data.root: held-out ones may have been trained on. Restore the data and split.json, "
                "or start in a new output_dir."
            )
        had_muon, has_muon = (
            bool(header["config"]["training"].get("muon")),
            self.config.training.muon is not None,
        )
        if had_muon != has_muon:
            raise CheckpointError(
                f"{self.config.output_dir}: training.muon: expected the optimizer of the checkpoint, trained "
                f"{'with' if had_muon else 'without'} it, got the other, which cannot go on from its state; restore "
                "the setting, or start in a new output_dir with --init-from."
            )
        kept = checkpoint["prod9_run"]
        self._tell_differences(kept)
        self.inherit(header)
        self.step = header["step"]
        self.validated = header.get("validated")
        self.skipped_steps = kept.get("skipped_steps", 0)
        self.skipped_in_row = kept.get("skipped_in_row", 0)
        self.fresh = kept.get("fresh", False)
        checkpoint.pop("loops", None)

    def configure_optimizers(self) -> list[Optimizer]:
        """One for each network."""
        pairs = zip(self.networks().values(), self.peak_rates(), strict=True)
        return [
            build_optimizer(network, self.config.training, rate=rate, main=position == 0)
            for position, (network, rate) in enumerate(pairs)
        ]

    def take_weights(self, opened: Opened) -> None:
        """Load the weights of another run, strictly; a discriminator's where the file has them.

        Raises CheckpointError.
        """
        for position, (name, network) in enumerate(self.networks().items()):
            state = weights_of(opened.state_dict, f"{name}.")
            if state or position == 0:
                load_strictly(network, state, opened.path)

    def inherit(self, header: Header) -> None:
        """Take over what belongs to the weights of ``header`` beside them; nothing by default."""

    # -- shared helpers -----------------------------------------------------------------------------

    def header(self) -> Header:
        """Return the header of a checkpoint of this moment."""
        data, module = self.config.data, cast(Any, self.trainer).datamodule
        described: dict[str, Any] = {
            "grid": list(data.grid),
            "label_map": data.label_map,
            "spacing": None if data.spacing is None else list(data.spacing),
            "intensity": data.intensity.model_dump(mode="json"),
            "crop_foreground": data.kind == "brats",
        }
        described["reference_affine"] = np.asarray(module.reference_affine, dtype=float).tolist()
        header = make_header(
            self.config,
            architecture=self.architecture(),
            step=self.step,
            split=module.split.to_dict(),
            inputs=self.inputs(),
            data=described,
        )
        header["stopped_early"] = self.stopped_early
        if self.validated is not None:
            header["validated"] = self.validated
        return header

    def step_with(self, loss: Tensor, optimizer: LightningOptimizer) -> None:
        """Backward, clip and step; raises NonFiniteError, having dropped them, for non-finite gradients."""
        self.manual_backward(loss)
        self.clip_or_raise(optimizer, loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def step_on(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Step the only optimizer on ``losses["total"]``; return all of them without their graphs."""
        self.step_with(losses["total"], self.optimizer_list()[0])
        return {name: value.detach() for name, value in losses.items()}

    def clip_or_raise(self, optimizer: Any, loss: Tensor | None = None) -> None:
        """Clip the gradients of ``optimizer``; raises NonFiniteError on all ranks if they are not finite.

        The norm that decides is the norm that clips: ``self.clip_gradients`` would compute it a second time, and
        refuses fused optimizers under autocast.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # whole: of sharded gradients, the norm over all shards.
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        finite = norm.isfinite() if loss is None else norm.isfinite() & loss.detach().isfinite()
        # Host sync: whether to step cannot be decided on the device.
        if not self.trainer.strategy.reduce_boolean_decision(bool(finite), all=True):
            optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError("the loss or its gradient is NaN or infinite")
        limit = self.config.training.gradient_clip_norm
        if limit > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    def optimizer_list(self) -> list[LightningOptimizer]:
        """Return the optimizers, always as a list."""
        optimizers = self.optimizers()
        return cast(list[LightningOptimizer], optimizers if isinstance(optimizers, list) else [optimizers])

    def log_values(self, values: Mapping[str, float]) -> None:
        """Write numbers to every logger at the current step, and keep them for the progress bar."""
        self.latest = dict(values)
        for logger in self.loggers:
            logger.log_metrics(self.latest, step=self.step)

    def seeded_generator(self, *stream: int) -> torch.Generator:
        """Return a generator on the adapter's device, seeded from the run's seed and ``stream``."""
        return torch.Generator(self.device).manual_seed(_mix(self.config.seed, *stream))

    def broadcast_parameters(self, network: nn.Module) -> None:
        """Give every rank the parameters of rank 0, after a change that depended on its own batch."""
        if self.trainer.world_size > 1:
            for parameter in network.parameters():
                dist.broadcast(parameter.data, src=0)

    def _seed_step(self) -> torch.Generator:
        # Dropout draws from the global generator: seeding it by step makes a resumed run draw the same.
        torch.manual_seed(_mix(self.config.seed, self.step, self.global_rank, 0))
        return self.seeded_generator(self.step, self.global_rank, 1)

    def _set_learning_rates(self) -> float:
        training = self.config.training
        factor = learning_rate_factor(training.lr_schedule, self.step, training.max_steps)
        for optimizer, peak in zip(self.optimizer_list(), self.peak_rates(), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        return self.peak_rates()[0] * factor

    def _skip(self, batch: Batch, error: NonFiniteError) -> None:
        self.skipped_steps += 1
        self.skipped_in_row += 1
        cases = cases_of(batch)
        log.warning("Step %d skipped (%d so far): %s in %s.", self.step, self.skipped_steps, error, cases)
        if self.skipped_in_row >= self.config.training.max_skipped_steps:
            raise TrainingError(
                f"Step {self.step}: expected finite losses, got {self.skipped_in_row} steps without, in a row; the "
                f"last batch was {cases}. Check those cases, lower training.learning_rate, or raise "
                "training.max_skipped_steps."
            )

    def evaluate(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the metrics of one held-out batch by itself."""
        return self.algorithm.summarise(self.tally(batch, batch_idx))

    def _count(self, part: str, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 0:  # a validation that failed in the middle leaves its part behind
            self._tally, self._unmeasured = Tally(), False
        self._tally = self._tally + self._measured(part, batch, batch_idx)

    def _measured(self, part: str, batch: Batch, batch_idx: int) -> Tally:
        """Return what a held-out batch adds; NaN is named with its case, as in training, and never ends the run."""
        spoilt = [name for name, value in batch.items() if _holds_nan(value)]
        if spoilt:
            log.warning(
                "Left out of the %s metrics: %s, whose %s holds NaN or infinity; repair the file, or leave the case "
                "out.", part, cases_of(batch), ", ".join(spoilt),
            )  # fmt: skip
            return Tally()
        try:
            tally = self.tally(batch, batch_idx)
        except (ArithmeticError, ValueError) as error:
            if not _tells_of_nan(error):
                raise
            log.warning("%s cannot be measured: %s.", cases_of(batch), str(error).rstrip("."))
            self._unmeasured = True
            return Tally()
        bad = sorted(name for name, value in tally.means.items() if bool(value.isnan().any()))
        if bad and len(bad) < len(tally.means):
            log.warning("%s: %s of %s is NaN.", part, ", ".join(bad), cases_of(batch))
        return tally

    def _log_tally(self, part: str) -> None:
        parts: list[Tally | None] = [self._tally]
        if self.trainer.world_size > 1:
            parts = [None] * self.trainer.world_size
            # Objects, since a rank may have nothing of a kind, or no batch at all. The one exchange of a validation.
            dist.all_gather_object(parts, self._tally.to("cpu"))
        whole_set = sum((tally.to(self.device) for tally in parts if tally is not None), Tally())
        self._tally = Tally()
        # All batches may have been left out.
        scores = self.algorithm.summarise(whole_set) if whole_set.means or whole_set.counts else {}
        if self._unmeasured:  # a network that fails on some cases is not judged by the others
            scores[self.monitor[0].partition("/")[2]] = torch.tensor(float("nan"), device=self.device)
        self.log_dict({f"{part}/{name}": value.float() for name, value in scores.items()})

    def _content(self) -> dict[str, str]:
        """Return a digest of the files of each patient that the run looks at, by patient; on the first rank."""
        if not self.trainer.is_global_zero:
            return {}
        digests = getattr(cast(Any, self.trainer).datamodule, "content_digests", None)
        return {} if digests is None else dict(digests())

    def _tell_differences(self, kept: dict[str, Any]) -> None:
        """Name what differs from the session before and makes the result another than without the interruption."""
        if not self.trainer.is_global_zero:
            return
        now, before = conditions_of(self.trainer), kept.get("conditions") or {}
        changed = [
            f"{name} was {before[name]}, is {now[name]}"
            for name in now
            if before.get(name, now[name]) != now[name]
        ]
        if changed:
            log.warning(
                "Resuming under other conditions than before: %s. The result will not equal that of an uninterrupted "
                "run bit for bit.", "; ".join(changed),
            )  # fmt: skip
        found, recorded = self._content(), kept.get("content") or {}
        other = sorted(name for name in recorded if found.get(name, recorded[name]) != recorded[name])
        if other:
            log.warning(
                "Resuming with other files than before: the content of %d cases changed (%s%s). The result will not "
                "equal that of an uninterrupted run; restore the files, or start in a new output_dir.",
                len(other), ", ".join(other[:5]), ", …" if len(other) > 5 else "",
            )  # fmt: skip


def conditions_of(trainer: Any) -> dict[str, Any]:
    """Return what beside config and data decides the last bits of a result."""
    device = trainer.strategy.root_device.type
    return {
        "threads": torch.get_num_threads() if device == "cpu" else 0,
        "device": device,
        "precision": str(trainer.precision),
        "processes": int(trainer.world_size),
        "torch": str(torch.__version__),
    }


def cases_of(batch: Batch) -> str:
    """Return the names of the cases of a batch."""
    return ", ".join(map(str, batch.get("case_id", ["unknown"])))


def _holds_nan(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all())


def _tells_of_nan(error: Exception) -> bool:
    return isinstance(error, ArithmeticError) or "NaN" in str(error) or "finite" in str(error)


def compile_network(network: nn.Module) -> None:
    """Compile ``network`` in place, keeping its parameter names; ConfigError where that cannot work."""
    compilers = ("g++", "clang++", "c++", "cl")
    if sys.platform == "win32" or not any(shutil.which(name) for name in compilers):
        raise ConfigError(
            f"training.compile: expected a C++ compiler ({', '.join(compilers)}), got none on this system; "
            "install one, or set training.compile to false."
        )
    network.compile()


def _mix(*values: int) -> int:
    # Neighbouring seeds must give unrelated streams; SeedSequence hashes, a sum would collide.
    return int(np.random.SeedSequence(list(values)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    parts: list[str] = []
    for name in sorted(set(found) | set(wanted)):
        old, new = found.get(name, {}), wanted.get(name, {})
        changed = [key for key in sorted(set(old) | set(new)) if old.get(key) != new.get(key)]
        parts += [f"{name}.{key}: {old.get(key)} there, {new.get(key)} here" for key in changed]
    return "; ".join(parts[:4])
