"""The recipes of stage 1: an autoencoder, in most configurations against a discriminator."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prod9.config.schema import AutoencoderConfig, AutoencoderLossConfig, MaisiVAEConfig, MaisiVAELossConfig
from prod9.measures.metrics import CombinedMetric
from prod9.measures.perceptual import build_perceptual
from prod9.models.checkpoint_encoder import ENCODER_PARTS, encoder_record, require_same_encoding, sources_of
from prod9.models.checkpoint_manager import Header, Opened
from prod9.models.factory import ModelFactory
from prod9.training.algorithms.autoencoder_trainer import AutoencoderTrainer
from prod9.training.algorithms.base import Losses
from prod9.training.algorithms.label_map_trainer import LabelMapTrainer
from prod9.training.algorithms.tally import Tally
from prod9.training.batches import VolumeBatch
from prod9.training.data.brats import BraTSDataModule
from prod9.training.data.medmnist3d import MedMNIST3DDataModule
from prod9.training.data.module import AbstractDataModule
from prod9.training.losses import VAEGANLoss
from prod9.training.recipes.base import AbstractRecipe, Draws, Encoding, Panel, Samples, as_array
from prod9.training.recipes.headline import Headline, Yardstick
from prod9.types import AutoencoderOutput

METRIC_LPIPS = "alex"
"""The LPIPS network that is reported: the one that its authors recommend for comparing images."""

_RECONSTRUCTION = ("psnr", "psnr_brain", "ssim", "l1", "lpips", "combined_metric", "psnr_brain_averages")


class AbstractGANRecipe(AbstractRecipe[AutoencoderConfig | MaisiVAEConfig, None, VolumeBatch]):
    """Stage 1 of either family; its adapter steps the discriminator on the reconstructions of the same batch.

    ConfigError when a perceptual network has no weights. draws_latent: whether the autoencoder draws its latent in
    training.
    """

    monitor = ("val/combined_metric", "max")
    headline = Headline(
        text="reconstruction {value} dB inside the brain (PSNR)",
        metric="psnr_brain",
        digits=1,
        yardsticks=(
            Yardstick(
                text="averages of the voxels below each cell of the latent grid have {value} dB",
                metric="psnr_brain_averages",
            ),
        ),
    )
    convolutional = True
    draws_latent: ClassVar[bool]
    trainer_type: ClassVar[type[AutoencoderTrainer]] = AutoencoderTrainer
    algorithm: AutoencoderTrainer

    def __init__(self, config: AutoencoderConfig | MaisiVAEConfig, bases: None = None) -> None:
        super().__init__(config, bases)
        adversarial, combined = config.loss.adversarial, config.callbacks.combined_metric
        self.autoencoder = ModelFactory.create_autoencoder(config.model)
        # SHA-256 of the checkpoints that have this very encoder.
        self.encoder_of: list[str] = []
        self.source: str | None = None
        self.noise: dict[str, list[float]] = {}
        for name, part in self.autoencoder.named_children():
            part.requires_grad_(not (config.freeze_encoder and name in ENCODER_PARTS))
        self.discriminator = (
            ModelFactory.create_discriminator(adversarial.discriminator) if adversarial.weight else None
        )
        self.algorithm = self.trainer_type(
            autoencoder=self.autoencoder,
            discriminator=self.discriminator,
            loss=build_loss(config.loss),
            lpips=build_perceptual(METRIC_LPIPS) if combined.lpips else None,
            combined=CombinedMetric(**combined.kwargs()),
            sampling=self.draws_latent,
        )

    @staticmethod
    def load_bases(config: Any, opened: Opened | None = None) -> None:
        """Load nothing: a stage 1 builds on nothing."""

    @classmethod
    def data_module(
        cls, config: AutoencoderConfig | MaisiVAEConfig, bases: None, encoding: Encoding
    ) -> AbstractDataModule:
        """Return the volumes of ``config``."""
        del bases, encoding
        return (MedMNIST3DDataModule if config.data.kind == "medmnist3d" else BraTSDataModule)(config)

    def networks(self) -> dict[str, nn.Module]:
        """Return the autoencoder and, where there is one, the discriminator."""
        networks: dict[str, nn.Module] = {"autoencoder": self.autoencoder}
        return networks if self.discriminator is None else {**networks, "discriminator": self.discriminator}

    def architecture(self) -> dict[str, Any]:
        """Return what rebuilds the autoencoder; only training needs the discriminator."""
        return {"autoencoder": self.config.model.model_dump(mode="json")}

    def take_weights(self, opened: Opened) -> None:
        """Load the weights of another run; with a frozen encoder, refuse a network that encodes differently."""
        if self.config.freeze_encoder:
            require_same_encoding(self.config, opened)
            self.source = opened.sha256
        super().take_weights(opened)

    def inherit(self, header: Header, *, same_run: bool) -> None:
        """Take over whose encoder that of ``header`` is and, of the same run, the noise of its scans."""
        self.encoder_of = sources_of(header)
        if same_run:
            self.noise = header["data"].get("noise", {})

    def prepare(self, data: AbstractDataModule) -> None:
        """Measure the noise of the training scans, which decoding removes, once a run."""
        self.noise = self.noise or data.noise_levels()

    def header_data(self) -> dict[str, Any]:
        """Return the noise of scans and, for a frozen encoder, whose it is, so that its latents' models take this."""
        record: dict[str, Any] = {"noise": self.noise} if self.noise else {}
        if self.config.freeze_encoder:
            sources = [*self.encoder_of, *([self.source] if self.source else [])]
            record["encoder"] = encoder_record(self.autoencoder.state_dict(), sources)
        return record

    def peak_rates(self) -> list[float]:
        """Return the peak rates of autoencoder and discriminator; one schedule scales both."""
        rates = [self.config.training.learning_rate, self.config.loss.adversarial.learning_rate]
        return rates[: len(self.networks())]

    def losses(self, batch: VolumeBatch, *, step: int, generator: torch.Generator) -> Losses:
        """Return the losses of the autoencoder."""
        return self.reconstruct(self.volumes(batch), step=step, generator=generator)[0]

    def reconstruct(
        self, x: Tensor, *, step: int, generator: torch.Generator
    ) -> tuple[Losses, AutoencoderOutput]:
        """Return the losses of the autoencoder on volumes ``x``, and its output."""
        return self.algorithm.compute_generator_losses(x, step=step, generator=generator)

    def tally(self, batch: VolumeBatch, index: int, draws: Draws) -> Tally:
        """Count what whole volumes add to the reconstruction metrics."""
        del index, draws
        self.keep_example(batch)
        return self.algorithm.tally(self.volumes(batch))

    @torch.no_grad()
    def samples(self, count: int, draws: Draws) -> Samples:
        """Return held-out volumes, each beside its reconstruction."""
        del draws
        rows = []
        for batch in self.examples:
            x = self.volumes(batch)
            for k, modality in enumerate(batch["modality"]):
                rebuilt = as_array(self.autoencoder.reconstruct(x[k : k + 1]))
                rows.append(
                    [
                        Panel(modality, x[k, 0].cpu().numpy()),
                        Panel(f"{modality}, reconstructed", rebuilt),
                    ]
                )
        return Samples(rows[:count])

    def volumes(self, batch: VolumeBatch) -> Tensor:
        """Return the volumes of a batch in the memory format of the networks."""
        x = batch["image"].as_subclass(Tensor)
        return x.contiguous(memory_format=torch.channels_last_3d) if self.config.training.channels_last else x


class FSQRecipe(AbstractGANRecipe):
    """Stage ``autoencoder``: tokens."""

    metrics = (*_RECONSTRUCTION, "codebook_usage", "perplexity")
    draws_latent = False


class LabelMapRecipe(AbstractGANRecipe):
    """Stage ``autoencoder`` on label maps: tokens of a brain and the lesion in it."""

    monitor = ("val/dice", "max")
    metrics = ("dice", "dice_lesion", "dice_brain", "accuracy", "codebook_usage", "perplexity")
    headline = Headline(
        text="reconstructed labels agree with Dice {value}",
        metric="dice",
        also=(
            Yardstick(text="whole lesion {value}", metric="dice_lesion"),
            Yardstick(text="brain {value}", metric="dice_brain"),
        ),
    )
    draws_latent = False
    trainer_type = LabelMapTrainer


class KLRecipe(AbstractGANRecipe):
    """Stage ``maisi_vae``: continuous latents."""

    metrics = (*_RECONSTRUCTION, "kl", "latent_std")
    draws_latent = True


def build_loss(loss: AutoencoderLossConfig | MaisiVAELossConfig) -> VAEGANLoss:
    """Build the stage-1 loss; raises ConfigError when the perceptual network has no local weights."""
    adversarial = loss.adversarial
    return VAEGANLoss(
        reconstruction=loss.reconstruction,
        reconstruction_weight=loss.reconstruction_weight,
        perceptual=build_perceptual(loss.perceptual.network),
        perceptual_weight=loss.perceptual.weight,
        adversarial_weight=adversarial.weight,
        criterion=adversarial.criterion,
        adaptive=adversarial.adaptive,
        adaptive_max=adversarial.adaptive_max,
        start_step=adversarial.start_step,
        gradient_penalty=adversarial.gradient_penalty,
        **loss.kwargs("reconstruction", "reconstruction_weight", "perceptual", "adversarial"),
    )
