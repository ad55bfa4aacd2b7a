"""AbstractLightning: what both adapters share: steps, seeds, learning rates, and surviving a bad batch.

An adapter drives a recipe: it owns the networks and optimizers and asks the recipe for losses, scores and samples. A
*step* is one training batch. Lightning counts optimizer steps instead, two per batch in a GAN, so its counters are not
used: ``AbstractLightning.step`` drives learning rate, limits, logs and file names, and is what a checkpoint stores.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from prod9.config.schema import RunConfig
from prod9.errors import TrainingError
from prod9.host_copies import with_host_copy
from prod9.models.checkpoint_manager import Header, Opened, load_strictly, make_header, weights_of
from prod9.training.algorithms.tally import Tally
from prod9.training.data.module import AbstractDataModule
from prod9.training.lightning.continuing import conditions_of, content_of, refuse_others, warn_of_differences
from prod9.training.lightning.stepping import NonFiniteError as NonFiniteError
from prod9.training.lightning.stepping import compile_network, with_gradient
from prod9.training.lightning.stepping import gradient_norm as gradient_norm
from prod9.training.optimizers import build_optimizer
from prod9.training.recipes.base import AbstractRecipe, Draws, Panel, mix
from prod9.training.schedules import learning_rate_factor
from prod9.training.sharding import own_part

Batch = Mapping[str, Any]
NOT_VALIDATED = -1
"""A step before the first, for weights that nothing has validated in this run."""
_KEPT = 4096
"""Values of the largest tensor of a batch that the host keeps beside the device."""
log = logging.getLogger("prod9")

AnyRecipe = AbstractRecipe[Any, Any, Any]
R = TypeVar("R", bound=AnyRecipe)
"""The recipe that an adapter drives."""


class AbstractLightning(LightningModule, ABC, Generic[R]):
    """A training run of one stage.

    recipe_type: of a final class, the recipe that it drives where none is given. recipe: of ``config``.
    """

    recipe_type: ClassVar[type[AnyRecipe]]

    def __init__(self, config: RunConfig, recipe: R | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.recipe: R = cast(R, self.recipe_type(config)) if recipe is None else recipe
        self.step = 0
        self.skipped_steps = 0
        self.skipped_in_row = 0
        # The step of the last whole validation; NOT_VALIDATED where even the weights of the start await theirs, None
        # where a checkpoint of an older version does not say.
        self.validated: int | None = 0
        self.stopped_early = False
        # Whether the weights are those of the seed, and no step has changed them.
        self.fresh = True
        self.latest: dict[str, float] = {}
        self._tally = Tally()
        self._unmeasured = False
        for name, network in self.recipe.networks().items():
            if self.recipe.convolutional and config.training.channels_last:
                network.to(memory_format=torch.channels_last_3d)
            self.add_module(name, network)
        if config.training.compile:
            compile_network(next(self.children()))

    @abstractmethod
    def optimise(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Do one training step and return what is worth logging; raises NonFiniteError to skip it."""

    @property
    def algorithm(self) -> Any:
        """Losses and metrics of the recipe."""
        return self.recipe.algorithm

    @property
    def data_module(self) -> AbstractDataModule:
        """The data module of the run that goes on."""
        return cast(Any, self.trainer).datamodule

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks by their state-dict prefix, the main one first; of a copy, the copied ones."""
        return dict(self.named_children())

    # -- Lightning's hooks --------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Prepare the recipe for a validation or a test by itself; in training, after a checkpoint is loaded."""
        if stage != "fit":
            self._prepare()

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Bring a batch to ``device``; the host keeps labels, flags and counts, which it looks at in the step."""
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        for name, value in batch.items():
            if isinstance(value, Tensor) and value.numel() <= _KEPT and moved[name] is not value:
                with_host_copy(moved[name], value)
        return moved

    def on_fit_start(self) -> None:
        """Prepare the recipe."""
        self._prepare()

    def on_train_start(self) -> None:
        """Give Lightning's batch counter the steps done before: validations then fall on the same steps."""
        self.trainer.fit_loop.epoch_loop.batch_progress.total.ready = self.step
        note = self.recipe.start_note()
        if note and self.fresh and self.trainer.is_global_zero:
            log.info("%s", note)

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
            # One transfer to the host per logged step, not per value and not per step.
            numbers = torch.stack([value.float() for value in values.values()]).tolist()
            named = {f"train/{name}": number for name, number in zip(values, numbers, strict=True)}
            self.log_values(named | {"learning_rate": rate})

    def on_validation_epoch_start(self) -> None:
        """Forget what the last validation has kept."""
        self.recipe.begin_validation()

    def on_test_epoch_start(self) -> None:
        """Forget what an earlier test has kept."""
        self.recipe.begin_validation()

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
        self._log_scores("val", self.recipe.set_scores(self.draws))

    def on_test_epoch_end(self) -> None:
        """Log the ``test/…`` metrics, of all batches and ranks together."""
        self._log_tally("test")
        self._log_scores("test", self.recipe.set_scores(self.draws))

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
            "content": content_of(self.trainer),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the step over and discard Lightning's loop state; refuse other networks or patients."""
        header, kept = cast(Header, checkpoint["prod9"]), checkpoint["prod9_run"]
        split = self.data_module.split
        refuse_others(header, self.config, architecture=self.recipe.architecture(), split=split)
        warn_of_differences(kept, self.trainer)
        self.recipe.inherit(header, same_run=True)
        self.step = header["step"]
        self.validated = header.get("validated")
        self.skipped_steps = kept.get("skipped_steps", 0)
        self.skipped_in_row = kept.get("skipped_in_row", 0)
        self.fresh = kept.get("fresh", False)
        checkpoint.pop("loops", None)

    def configure_optimizers(self) -> list[Optimizer]:
        """Return an optimizer for each network."""
        pairs = zip(self.networks().values(), self.recipe.peak_rates(), strict=True)
        return [
            build_optimizer(network, self.config.training, rate=rate, main=position == 0)
            for position, (network, rate) in enumerate(pairs)
        ]

    # -- what a run and its callbacks call ------------------------------------------------------------

    def start_from(self, opened: Opened) -> None:
        """Take the weights of another run; optimizers and step start anew. Raises CheckpointError."""
        self.recipe.take_weights(opened)
        self.recipe.inherit(opened.header, same_run=False)
        self.fresh = False
        if self.config.training.validate_start:
            self.validated = NOT_VALIDATED
        log.info("Starting from the weights of %s (step %d there).", opened.path, opened.header["step"])

    def take_trained(self, opened: Opened) -> None:
        """Take the main network and the step of a checkpoint, to measure it. Raises CheckpointError."""
        name, network = next(iter(self.networks().items()))
        load_strictly(network, weights_of(opened.state_dict, f"{name}."), opened.path)
        self.recipe.inherit(opened.header, same_run=True)
        self.step = opened.header["step"]

    def note_validation(self, *, stopping: bool) -> None:
        """Note that this step is validated, and whether the run ends with it."""
        self.validated = self.step
        self.stopped_early = stopping and self.step < self.config.training.max_steps

    def header(self) -> Header:
        """Return the header of a checkpoint of this moment."""
        data, module = self.config.data, self.data_module
        described: dict[str, Any] = {
            "grid": list(data.grid),
            "label_map": data.label_map,
            "spacing": None if data.spacing is None else list(data.spacing),
            "intensity": data.intensity.model_dump(mode="json"),
            "crop_foreground": data.kind == "brats",
            "reference_affine": np.asarray(module.reference_affine, dtype=float).tolist(),
        }
        header = make_header(
            self.config,
            architecture=self.recipe.architecture(),
            step=self.step,
            split=module.split.to_dict(),
            inputs=self.recipe.inputs(),
            data=described | self.recipe.header_data(),
        )
        header["stopped_early"] = self.stopped_early
        if self.validated is not None:
            header["validated"] = self.validated
        return header

    def sample_validation(self, num_samples: int) -> list[list[Panel]]:
        """Return rows of volumes worth looking at, and log what they measure; after a validation."""
        samples = self.recipe.samples(num_samples, self.draws)
        self._log_scores("val", samples.metrics)
        return samples.rows

    def log_values(self, values: Mapping[str, float]) -> None:
        """Write numbers to every logger at the current step, and keep them for the progress bar."""
        self.latest = dict(values)
        for logger in self.loggers:
            logger.log_metrics(self.latest, step=self.step)

    # -- steps ----------------------------------------------------------------------------------------

    def step_with(self, loss: Tensor, optimizer: LightningOptimizer) -> None:
        """Backward, clip and step; raises NonFiniteError, having dropped them, for non-finite gradients."""
        self.manual_backward(loss)
        self.clip_or_raise(optimizer, loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def step_on(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Step the first optimizer on ``losses["total"]``; return all of them without their graphs."""
        self.step_with(losses["total"], self.optimizer_list()[0])
        return {name: value.detach() for name, value in losses.items()}

    def clip_or_raise(self, optimizer: Any, loss: Tensor | None = None) -> None:
        """Clip the gradients of ``optimizer``; raises NonFiniteError on all ranks if they are not finite.

        The norm that decides is the norm that clips: ``self.clip_gradients`` would compute it a second time, and
        refuses fused optimizers under autocast.
        """
        norm, finite = gradient_norm(optimizer, loss)
        # Host sync, the one of a step: whether to take it cannot be decided on the device.
        self.clip_or_drop(optimizer, norm, bool(finite))

    def clip_or_drop(self, optimizer: Any, norm: Tensor, finite: bool) -> None:
        """Clip the gradients of ``optimizer`` by their ``norm``, or drop them and raise NonFiniteError on all ranks.

        finite: whether they are, on this rank.
        """
        if not self.trainer.strategy.reduce_boolean_decision(finite, all=True):
            optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError("the loss or its gradient is NaN or infinite")
        limit = self.config.training.gradient_clip_norm
        if limit > 0:
            torch.nn.utils.clip_grads_with_norm_(with_gradient(optimizer), limit, norm)

    def optimizer_list(self) -> list[LightningOptimizer]:
        """Return the optimizers, always as a list."""
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    @property
    def draws(self) -> Draws:
        """Generators of the run's seed on the adapter's device."""
        return Draws(self.config.seed, self.device)

    def _prepare(self) -> None:
        """Bring what is frozen to the device, and let the recipe measure the data."""
        self.recipe.place(self.trainer.strategy.root_device)
        self.recipe.prepare(self.data_module)

    def _seed_step(self) -> torch.Generator:
        # Dropout draws from the global generator: seeding it by step makes a resumed run draw the same.
        torch.manual_seed(mix(self.config.seed, self.step, self.global_rank, 0))
        return self.draws.generator(self.step, self.global_rank, 1)

    def _set_learning_rates(self) -> float:
        training, peaks = self.config.training, self.recipe.peak_rates()
        factor = learning_rate_factor(training.lr_schedule, self.step, training.max_steps)
        for optimizer, peak in zip(self.optimizer_list(), peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        return peaks[0] * factor

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

    # -- scores ---------------------------------------------------------------------------------------

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
            tally = self.recipe.tally(batch, batch_idx, self.draws)
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
            monitor = self.config.callbacks.checkpoint.monitor or self.recipe.monitor[0]
            scores[monitor.removeprefix("val/")] = torch.tensor(float("nan"), device=self.device)
        self._log_scores(part, scores)

    def _log_scores(self, part: str, scores: Mapping[str, Tensor]) -> None:
        self.log_dict({f"{part}/{name}": value.float() for name, value in scores.items()})


def cases_of(batch: Batch) -> str:
    """Return the names of the cases of a batch."""
    return ", ".join(map(str, batch.get("case_id", ["unknown"])))


def _holds_nan(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all())


def _tells_of_nan(error: Exception) -> bool:
    return isinstance(error, ArithmeticError) or "NaN" in str(error) or "finite" in str(error)
