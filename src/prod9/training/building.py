"""Algorithms from their sections of the configuration, as :mod:`prod9.models.factory` builds networks from theirs."""

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.autoencoder.discriminator import Discriminator
from prod9.config.schema import (
    AutoencoderLossConfig,
    CombinedMetricConfig,
    ControlNetLossConfig,
    DiffusionLossConfig,
    FlowControlLossConfig,
    MaisiVAELossConfig,
    RefinerLossConfig,
    TransformerLossConfig,
)
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.generator.controlnet_maskgit import ControlNetMaskGiT
from prod9.generator.maskgit import MaskGiTScheduler
from prod9.generator.refiner import Refiner
from prod9.generator.token_decoder import AbstractTokenDecoder
from prod9.measures.metrics import CombinedMetric
from prod9.measures.perceptual import build_perceptual
from prod9.training.algorithms.autoencoder_trainer import AutoencoderTrainer
from prod9.training.algorithms.control_flow import RegionContrast
from prod9.training.algorithms.controlnet_trainer import ControlNetTrainer
from prod9.training.algorithms.diffusion_trainer import DiffusionTrainer
from prod9.training.algorithms.refiner_trainer import RefinerTrainer
from prod9.training.algorithms.transformer_trainer import TransformerTrainer
from prod9.training.losses import VAEGANLoss

METRIC_LPIPS = "alex"
"""The LPIPS network that is reported: the one its authors recommend for comparing images."""


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


def build_autoencoder_trainer(
    loss: AutoencoderLossConfig | MaisiVAELossConfig,
    combined: CombinedMetricConfig,
    *,
    autoencoder: AutoencoderFSQ | AutoencoderKlMaisi,
    discriminator: Discriminator | None,
) -> AutoencoderTrainer:
    """Build the stage-1 algorithm; LPIPS is measured when the combined metric weighs it."""
    return AutoencoderTrainer(
        autoencoder=autoencoder,
        discriminator=discriminator,
        loss=build_loss(loss),
        lpips=build_perceptual(METRIC_LPIPS) if combined.lpips else None,
        combined=CombinedMetric(**combined.kwargs()),
        sampling=isinstance(autoencoder, AutoencoderKlMaisi),
    )


def build_transformer_trainer(
    loss: TransformerLossConfig, *, decoder: AbstractTokenDecoder, scheduler: MaskGiTScheduler
) -> TransformerTrainer:
    """Build the stage-2 algorithm."""
    return TransformerTrainer(decoder=decoder, scheduler=scheduler, **loss.kwargs())


def build_refiner_trainer(loss: RefinerLossConfig, *, refiner: Refiner) -> RefinerTrainer:
    """Build the algorithm that trains a refiner."""
    return RefinerTrainer(refiner=refiner, **loss.kwargs())


def build_diffusion_trainer(
    loss: DiffusionLossConfig, *, network: DiffusionModelRF, scheduler: RectifiedFlowSchedulerRF
) -> DiffusionTrainer:
    """Build the stage-2 algorithm of MAISI."""
    return DiffusionTrainer(network=network, scheduler=scheduler, **loss.kwargs())


def build_controlnet_trainer(
    loss: ControlNetLossConfig,
    *,
    decoder: AbstractTokenDecoder,
    controlnet: ControlNetMaskGiT,
    scheduler: MaskGiTScheduler,
) -> ControlNetTrainer:
    """Build the stage-3 algorithm on a frozen ``decoder``."""
    return ControlNetTrainer(decoder=decoder, controlnet=controlnet, scheduler=scheduler, **loss.kwargs())


def build_flow_controlnet_trainer(
    loss: FlowControlLossConfig,
    *,
    base: DiffusionModelRF,
    controlnet: ControlNetRF,
    scheduler: RectifiedFlowSchedulerRF,
    max_steps: int,
) -> ControlNetTrainer:
    """Build MAISI's stage-3 algorithm on a frozen ``base``; max_steps: of the training."""
    contrast = loss.contrast
    return ControlNetTrainer(
        decoder=base,
        controlnet=controlnet,
        scheduler=scheduler,
        contrast=None
        if contrast is None
        else RegionContrast(
            switch_step=round(contrast.switch_fraction * max_steps), **contrast.kwargs("switch_fraction")
        ),
        **loss.kwargs("contrast"),
    )
