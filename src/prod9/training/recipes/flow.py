"""The recipe of stage 2 of MAISI: a rectified flow over the latents of a trained autoencoder."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.schema import MaisiDiffusionConfig
from prod9.diffusion.condition import FlowCondition
from prod9.models.checkpoint_header import DISTILLED, require_flow
from prod9.models.checkpoint_manager import CheckpointManager, Header, Loaded, Opened, require_schedule
from prod9.models.factory import ModelFactory
from prod9.models.released import RECTIFIED_FLOW
from prod9.training.algorithms.base import Losses
from prod9.training.algorithms.diffusion_trainer import DiffusionTrainer
from prod9.training.algorithms.distillation_trainer import DistillationTrainer
from prod9.training.algorithms.tally import Tally
from prod9.training.batches import LatentBatch
from prod9.training.data.module import AbstractDataModule
from prod9.training.recipes.base import AbstractRecipe, Draws, Encoding, Panel, Samples, named_input
from prod9.training.recipes.distilled import TEACHER, DistilledFrom, load_student, no_teacher
from prod9.training.recipes.frozen import FrozenAutoencoder, latent_data_module
from prod9.training.recipes.headline import Headline, Yardstick

_BINS = 64


class LatentData(Protocol):
    """A data module of latents."""

    @property
    def latent_std(self) -> float:
        """Deviation of all latent values of the training part."""
        ...


class FlowRecipe(AbstractRecipe[MaisiDiffusionConfig, Loaded[AutoencoderKlMaisi], LatentBatch]):
    """Stage ``maisi_diffusion``.

    Latents are multiplied by ``scale_factor``, 1 over their deviation in the whole training store. The checkpoint keeps
    it, and a run that starts from other weights keeps the factor that those were trained with.
    """

    metrics = ("loss", "loss_near_data", "loss_near_noise", "sample_distance")
    headline = Headline(
        text="error of the predicted velocity {value}",
        metric="loss",
        digits=3,
        yardsticks=(Yardstick(text="predicting none has about {value}", metric="no_prediction"),),
    )
    convolutional = True
    algorithm: DiffusionTrainer | DistillationTrainer

    def __init__(self, config: MaisiDiffusionConfig, bases: Loaded[AutoencoderKlMaisi] | None = None) -> None:
        super().__init__(config, bases)
        self.autoencoder = FrozenAutoencoder(self.bases, config)
        self.latent_channels = self.bases.network.latent_channels
        self.diffusion = ModelFactory.create_diffusion(config.model, latent_channels=self.latent_channels)
        scheduler = ModelFactory.create_flow_scheduler(config.flow)
        self.teacher: DistilledFrom | None = None
        self.device = torch.device("cpu")
        if config.distillation is None:
            self.algorithm = DiffusionTrainer(
                network=self.diffusion, scheduler=scheduler, **config.loss.kwargs()
            )
        else:
            self.algorithm = DistillationTrainer(
                network=self.diffusion,
                scheduler=scheduler,
                num_step_sizes=len(config.model.known_steps),
                distance=config.loss.distance,
            )
        self.sampler = ModelFactory.create_flow_sampler(config.sampler, config.flow)
        self.scale_factor: float | None = None

    @staticmethod
    def load_bases(config: MaisiDiffusionConfig, opened: Opened | None = None) -> Loaded[AutoencoderKlMaisi]:
        """Load the autoencoder of ``inputs.autoencoder``."""
        path = named_input(config, "autoencoder", what="MAISI autoencoder", example="maisi_vae")
        return CheckpointManager.load_autoencoder(opened or path, stage="maisi_vae")

    @classmethod
    def data_module(
        cls, config: MaisiDiffusionConfig, bases: Loaded[AutoencoderKlMaisi], encoding: Encoding
    ) -> AbstractDataModule:
        """Return the latents of ``config``."""
        return latent_data_module(config, bases, encoding, covariates=config.covariates)

    def networks(self) -> dict[str, nn.Module]:
        """Return the U-Net."""
        return {"diffusion": self.diffusion}

    def architecture(self) -> dict[str, Any]:
        """Return what rebuilds the U-Net: its section, and the autoencoder's for the latent."""
        return {
            "diffusion": self.config.model.model_dump(mode="json"),
            "autoencoder": self.autoencoder.section,
        }

    def inputs(self) -> dict[str, dict[str, str]]:
        """Return where the autoencoder is and its hash."""
        return {"autoencoder": self.describe(self.bases)}

    def yardsticks(self) -> dict[str, float]:
        """Return the error of the velocity 0: latents and noise have a deviation of 1 each.

        Not for a distilled network, whose error is against its teacher.
        """
        if not isinstance(self.algorithm, DiffusionTrainer):
            return {}
        return {"no_prediction": 2.0 if self.algorithm.distance == "l2" else 2.0 / math.sqrt(math.pi)}

    def place(self, device: torch.device) -> None:
        """Bring the autoencoder, and the teacher where there is one, to ``device``."""
        self.device = device
        self.autoencoder.place(device)
        if self.teacher is not None:
            self.teacher.network.to(device)

    # -- the scale of the latents -------------------------------------------------------------------

    def inherit(self, header: Header, *, same_run: bool) -> None:
        """Keep the scale that the weights of ``header`` were trained with; CheckpointError for those of a DDPM."""
        del same_run
        require_schedule(header, RECTIFIED_FLOW, "The weights to start from")
        self.scale_factor = float(header["data"]["scale_factor"])
        if self.config.distillation is not None and self.teacher is None:
            # Resumed or measured: the teacher is where the run keeps it.
            self._learn_from(DistilledFrom.recorded(header, self.config))

    def take_weights(self, opened: Opened) -> None:
        """Load the weights of another run; those of a teacher lack the embedding of the step size, which stays 0."""
        require_flow(opened.header, opened.path)
        if self.config.distillation is None:
            super().take_weights(opened)
            return
        self._learn_from(DistilledFrom.opened(opened, self.config))
        load_student(self.diffusion, opened)

    def _learn_from(self, teacher: DistilledFrom) -> None:
        assert isinstance(self.algorithm, DistillationTrainer)
        teacher.network.to(self.device)
        self.teacher, self.algorithm.teacher = teacher, teacher.teacher

    def begin_anew(self) -> None:
        """Refuse a student without a teacher (ConfigError)."""
        if self.config.distillation is not None:
            raise no_teacher()

    def kept_inputs(self) -> dict[str, Path]:
        """Return the autoencoder and the teacher."""
        kept = super().kept_inputs()
        return kept if self.teacher is None else kept | {TEACHER: self.teacher.path}

    def prepare(self, data: AbstractDataModule) -> None:
        """Measure the latents of a run that is new."""
        if self.scale_factor is None:
            self.scale_factor = 1.0 / cast(LatentData, data).latent_std

    def header_data(self) -> dict[str, Any]:
        """Return the scale of the latents, and what a student was distilled from."""
        scale = {"scale_factor": self.scale_factor}
        return scale if self.teacher is None else scale | {DISTILLED: self.teacher.record}

    def _scaled(self, batch: LatentBatch) -> Tensor:
        assert self.scale_factor is not None  # measured, resumed or inherited
        x = batch["latent"] * self.scale_factor
        return x.contiguous(memory_format=torch.channels_last_3d) if self.config.training.channels_last else x

    # -- training and validation --------------------------------------------------------------------

    def losses(self, batch: LatentBatch, *, step: int, generator: torch.Generator) -> Losses:
        """Return the losses of corrupted latents."""
        del step
        return self.algorithm.compute_losses(self._scaled(batch), flow_condition(batch), generator=generator)

    def tally(self, batch: LatentBatch, index: int, draws: Draws) -> Tally:
        """Count what adds to the velocity losses; a batch is corrupted in the same way at every validation."""
        self.keep_example(batch)
        return self.algorithm.tally(
            self._scaled(batch), flow_condition(batch), generator=draws.for_batch(index)
        )

    @torch.no_grad()
    def samples(self, count: int, draws: Draws) -> Samples:
        """Sample the configured modalities in turn, decode them, and measure ``sample_distance``.

        That is the total variation distance between the histograms of sampled and of held-out latent values, averaged
        over channels: 0 equal, 1 disjoint. Every process samples the same, so the metric needs no exchange.
        """
        data = self.config.data
        names = [data.modalities[k % len(data.modalities)] for k in range(count)]
        labels = torch.tensor([data.label_map[name] for name in names], device=draws.device)
        spacing = self.examples[0]["spacing"][:1].expand(count, 3)
        latents = self.sample_latents(FlowCondition.of_heads(labels, spacing), draws)
        held_out = torch.cat([batch["latent"] for batch in self.examples])
        rows = [
            [Panel(f"{name}, sampled", self.autoencoder.decode(latents[k : k + 1]))]
            for k, name in enumerate(names)
        ]
        return Samples(rows, {"sample_distance": _histogram_distance(latents, held_out)})

    def sample_latents(self, condition: FlowCondition, draws: Draws) -> Tensor:
        """Return sampled latents ``[B Z h w d]`` in the autoencoder's scale, the same for the same weights."""
        assert self.scale_factor is not None  # measured, resumed or inherited
        shape = (len(condition), self.latent_channels, *self.autoencoder.latent_grid)
        generators = [draws.for_sample(k) for k in range(len(condition))]
        return self.sampler.sample(self.diffusion.predict, shape, condition, generators) / self.scale_factor


def flow_condition(batch: LatentBatch) -> FlowCondition:
    """Return the class labels, the spacing and, where there are some, the covariates of a batch."""
    condition = FlowCondition.of_heads(batch["label"], batch["spacing"])
    return replace(condition, covariates=batch["covariates"]) if "covariates" in batch else condition


def _histogram_distance(sampled: Tensor, real: Tensor) -> Tensor:
    distances = []
    for channel in range(real.shape[1]):
        pair = [values[:, channel].float().flatten().cpu() for values in (sampled, real)]
        low, high = pair[1].quantile(0.001).item(), pair[1].quantile(0.999).item()
        # What lies outside counts in the outermost bins.
        counts = [torch.histc(v.clamp(low, high), _BINS, low, high) / v.numel() for v in pair]
        distances.append(0.5 * (counts[0] - counts[1]).abs().sum())
    return torch.stack(distances).mean()
