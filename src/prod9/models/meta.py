"""The networks that a configuration trains, on torch's meta device: all but the memory, for counts and checks."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from prod9.config.schema import (
    AutoencoderConfig,
    DetailSection,
    FSQModelConfig,
    KLModelConfig,
    MaisiControlNetConfig,
    MaisiDiffusionConfig,
    MaisiVAEConfig,
    MaskGiTControlNetLightningConfig,
    RefinerConfig,
    RunConfig,
    TransformerConfig,
)
from prod9.models.factory import ModelFactory
from prod9.planning.estimates import Autoencoder, Base
from prod9.stages import STAGES


def meta_networks(
    config: RunConfig, base: Base | None, autoencoder: Autoencoder | None
) -> dict[str, nn.Module]:
    """Return the networks that ``config`` trains by name, its own first.

    Args:
        config: of any stage.
        base: the stage 2 that a stage 3 steers; None for other stages.
        autoencoder: the stage-1 model below a stage 2 or 3; None for other stages.
    """
    below = [section for section in (autoencoder, base) if section is not None]
    with torch.device("meta"):
        networks = _BUILDERS[config.stage](config, *below)
    return dict(zip((STAGES[config.stage].weights, "discriminator"), networks, strict=False))


def count_parameters(config: RunConfig, base: Base | None, autoencoder: Autoencoder | None) -> int:
    """Return how many parameters ``config`` trains; arguments: as for :func:`meta_networks`."""
    networks = meta_networks(config, base, autoencoder).values()
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def _stage1(config: AutoencoderConfig | MaisiVAEConfig) -> list[nn.Module]:
    adversarial, autoencoder = config.loss.adversarial, ModelFactory.create_autoencoder(config.model)
    if adversarial.weight == 0:
        return [autoencoder]
    return [autoencoder, ModelFactory.create_discriminator(adversarial.discriminator)]


def _transformer(config: TransformerConfig, autoencoder: FSQModelConfig) -> list[nn.Module]:
    return [ModelFactory.create_transformer(config.model, levels=autoencoder.levels)]


def _flow(config: MaisiDiffusionConfig, autoencoder: KLModelConfig) -> list[nn.Module]:
    return [ModelFactory.create_diffusion(config.model, latent_channels=autoencoder.latent_channels)]


def _refiner(config: RefinerConfig) -> list[nn.Module]:
    return [ModelFactory.create_refiner(config.model)]


def _detail(config: DetailSection, autoencoder: Autoencoder | None = None) -> list[nn.Module]:
    del autoencoder  # its volumes are all that counts
    return [ModelFactory.create_detail(config.model)]


def _control_maskgit(
    config: MaskGiTControlNetLightningConfig, autoencoder: FSQModelConfig, base: TransformerConfig
) -> list[nn.Module]:
    decoder = ModelFactory.create_transformer(base.model, levels=autoencoder.levels)
    return [
        ModelFactory.create_controlnet(
            config.model, config.condition, base=decoder, base_model=base.model, autoencoder=autoencoder
        )
    ]


def _control_flow(
    config: MaisiControlNetConfig, autoencoder: KLModelConfig, base: MaisiDiffusionConfig
) -> list[nn.Module]:
    return [
        ModelFactory.create_controlnet(
            config.model, config.condition, base_model=base.model, autoencoder=autoencoder
        )
    ]


_BUILDERS: Mapping[str, Callable[..., list[nn.Module]]] = {
    "autoencoder": _stage1,
    "maisi_vae": _stage1,
    "transformer": _transformer,
    "maisi_diffusion": _flow,
    "refiner": _refiner,
    "detail": _detail,
    "translation_detail": _detail,
    "maisi_detail": _detail,
    "maskgit_controlnet": _control_maskgit,
    "maisi_controlnet": _control_flow,
}
"""By stage. Called with the configuration and what the stage builds on."""
