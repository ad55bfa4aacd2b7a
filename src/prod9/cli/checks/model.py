"""What ``--check`` builds: networks without their memory, their sizes, and the weights that they start from."""

import warnings
from typing import TYPE_CHECKING

from prod9.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

    from prod9.config.schema import (
        FSQModelConfig,
        KLModelConfig,
        MaisiDiffusionConfig,
        RunConfig,
        TransformerConfig,
    )
    from prod9.models.checkpoint_manager import Opened


def count_parameters(
    config: "RunConfig",
    base: "TransformerConfig | MaisiDiffusionConfig | None",
    autoencoder: "FSQModelConfig | KLModelConfig | None",
) -> int:
    """Return how many parameters ``config`` trains; base, autoencoder: as for :func:`build_networks`."""
    networks = build_networks(config, base, autoencoder)
    return sum(parameter.numel() for network in networks.values() for parameter in network.parameters())


def build_networks(
    config: "RunConfig",
    base: "TransformerConfig | MaisiDiffusionConfig | None",
    autoencoder: "FSQModelConfig | KLModelConfig | None",
) -> "dict[str, nn.Module]":
    """Return the networks that ``config`` trains by name, on the meta device, which allocates nothing."""
    import torch

    from prod9.models.checkpoint_manager import PREFIXES
    from prod9.models.factory import ModelFactory

    networks: list[nn.Module]
    with torch.device("meta"):
        if config.stage == "maisi_controlnet":
            assert base is not None
            assert base.stage == "maisi_diffusion"
            assert autoencoder is not None
            assert autoencoder.kind == "kl"
            networks = [
                ModelFactory.create_controlnet(
                    config.model, config.condition, base_model=base.model, autoencoder=autoencoder
                )
            ]
        elif config.stage == "maskgit_controlnet":
            assert base is not None
            assert base.stage == "transformer"
            assert autoencoder is not None
            assert autoencoder.kind == "fsq"
            decoder = ModelFactory.create_transformer(base.model, levels=autoencoder.levels)
            networks = [
                ModelFactory.create_controlnet(
                    config.model,
                    config.condition,
                    base=decoder,
                    base_model=base.model,
                    autoencoder=autoencoder,
                )
            ]
        elif config.stage == "refiner":
            networks = [ModelFactory.create_refiner(config.model)]
        elif config.stage == "maisi_diffusion":
            assert autoencoder is not None
            assert autoencoder.kind == "kl"
            channels = autoencoder.latent_channels
            networks = [ModelFactory.create_diffusion(config.model, latent_channels=channels)]
        elif config.stage == "transformer":
            assert autoencoder is not None
            assert autoencoder.kind == "fsq"
            networks = [ModelFactory.create_transformer(config.model, levels=autoencoder.levels)]
        else:
            networks = [ModelFactory.create_autoencoder(config.model)]
            if config.loss.adversarial.weight > 0:
                networks.append(ModelFactory.create_discriminator(config.loss.adversarial.discriminator))
    names = (PREFIXES[config.stage].removesuffix("."), "discriminator")
    return dict(zip(names, networks, strict=False))


def check_start(config: "RunConfig", networks: "dict[str, nn.Module]", path: str) -> None:
    """Refuse a run or checkpoint ``path`` that training could not start from (``--init-from``); CheckpointError.

    networks: of ``config``, on the meta device.
    """
    from prod9.models.checkpoint_manager import CheckpointManager, load_strictly, weights_of

    opened = CheckpointManager.open(path, stage=config.stage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that loading into the meta device keeps nothing
        if _starts_from_labels(config, opened):
            _check_labels(networks["decoder"], opened)
            return
        for position, (name, network) in enumerate(networks.items()):
            state = weights_of(opened.state_dict, f"{name}.")
            if state or position == 0:
                load_strictly(network, state, opened.path)


def _starts_from_labels(config: "RunConfig", opened: "Opened") -> bool:
    kinds = config.model.kind, opened.header["config"]["model"]["kind"]
    return kinds == ("single_stream", "label_conditional")


def _check_labels(decoder: "nn.Module", opened: "Opened") -> None:
    """Refuse a label-conditional transformer of another size than ``decoder``, which reads sources."""
    from prod9.generator.single_stream import TransformerDecoderSingleStream
    from prod9.models.checkpoint_manager import CheckpointManager

    assert isinstance(decoder, TransformerDecoderSingleStream)
    try:
        decoder.start_from(CheckpointManager.load_transformer(opened).network)
    except ValueError as error:
        raise CheckpointError(f"{opened.path}: {error}") from error
