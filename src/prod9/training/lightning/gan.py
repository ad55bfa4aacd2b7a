"""AbstractGANLightning: an autoencoder against a discriminator, two optimizers, stepped by hand."""

from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.schema import AutoencoderConfig, MaisiVAEConfig
from prod9.models.factory import ModelFactory
from prod9.training.algorithms.tally import Tally
from prod9.training.building import build_autoencoder_trainer
from prod9.training.lightning.base import AbstractLightning, Batch, NonFiniteError, Panel, compile_network

A = TypeVar("A", AutoencoderFSQ, AutoencoderKlMaisi)


class AbstractGANLightning(AbstractLightning, Generic[A]):
    """Stage 1, either family: a final class brings its ``autoencoder``.

    The discriminator's optimizer exists from the start: a checkpoint from before its first step can be
    resumed after it.
    """

    monitor = ("val/combined_metric", "max")
    config: AutoencoderConfig | MaisiVAEConfig

    def __init__(self, config: AutoencoderConfig | MaisiVAEConfig, autoencoder: A) -> None:
        super().__init__(config)
        adversarial = config.loss.adversarial
        self.autoencoder = autoencoder
        self.discriminator = (
            ModelFactory.create_discriminator(adversarial.discriminator) if adversarial.weight else None
        )
        self.algorithm = build_autoencoder_trainer(
            config.loss,
            config.callbacks.combined_metric,
            autoencoder=autoencoder,
            discriminator=self.discriminator,
        )
        self.examples: list[tuple[str, Tensor]] = []
        self._prepare_networks()

    def _prepare_networks(self) -> None:
        if self.config.training.channels_last:
            for network in self.networks().values():
                network.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
        if self.config.training.compile:
            compile_network(self.autoencoder)

    def architecture(self) -> dict[str, Any]:
        """Return what rebuilds the autoencoder; the discriminator is needed by training only."""
        return {"autoencoder": self.config.model.model_dump(mode="json")}

    def networks(self) -> dict[str, nn.Module]:
        """Return the autoencoder and, where there is one, the discriminator."""
        networks: dict[str, nn.Module] = {"autoencoder": self.autoencoder}
        return networks if self.discriminator is None else {**networks, "discriminator": self.discriminator}

    def peak_rates(self) -> list[float]:
        """Return the peak rates of autoencoder and discriminator; one schedule scales both."""
        rates = [self.config.training.learning_rate, self.config.loss.adversarial.learning_rate]
        return rates[: len(self.networks())]

    def first_batch(self, x: Tensor) -> None:
        """Fit the network to the first batch of a fresh run; nothing by default."""

    def optimise(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Step the autoencoder, then the discriminator on the same reconstructions."""
        x = self._volumes(batch)
        if self.fresh:
            if not x.isfinite().all():
                # What is fitted to it would stay NaN for ever.
                raise NonFiniteError("the first batch holds NaN or infinity")
            self.first_batch(x)
        optimizers = self.optimizer_list()
        losses, output = self.algorithm.compute_generator_losses(x, step=self.step, generator=generator)
        self.step_with(losses["total"], optimizers[0])
        values = {name: value.detach() for name, value in losses.items()}
        if len(optimizers) > 1:
            critic = self.algorithm.update_discriminator(
                x,
                output.reconstruction,
                cast(Optimizer, optimizers[1]),
                step=self.step,
                backward=self.manual_backward,
                clip=self.clip_or_raise,
            )
            # Or they would wait, filled, through the next generator step.
            optimizers[1].zero_grad(set_to_none=True)
            values |= {f"discriminator_{name}": value for name, value in critic.items()}
        return values

    def tally(self, batch: Batch, batch_idx: int) -> Tally:
        """Count what whole volumes add to the reconstruction metrics, and keep the first few for the picture."""
        x = self._volumes(batch)
        if len(self.examples) < self.config.callbacks.num_samples:
            self.examples += list(zip(map(str, batch["modality"]), x.cpu(), strict=True))
        return self.algorithm.tally(x)

    def on_validation_epoch_start(self) -> None:
        """Forget the volumes of the last validation."""
        self.examples = []

    @torch.no_grad()
    def sample_validation(self, num_samples: int) -> list[list[Panel]]:
        """Return held-out volumes, each beside its reconstruction."""
        rows = []
        for modality, x in self.examples[:num_samples]:
            output = self.autoencoder(self._format(x[None].to(self.device)))
            rebuilt = output.reconstruction[0, 0].float().clamp(0, 1).cpu().numpy()
            rows.append([Panel(modality, x[0].numpy()), Panel(f"{modality}, reconstructed", rebuilt)])
        return rows

    def _volumes(self, batch: Batch) -> Tensor:
        return self._format(batch["image"].as_subclass(Tensor))

    def _format(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last_3d) if self.config.training.channels_last else x
