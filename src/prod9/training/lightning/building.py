"""From a configuration to its adapter, its data module and the bases that it builds on."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prod9.config.schema import RunConfig
from prod9.data.stores.latents import ParallelEncode
from prod9.models.checkpoint_manager import Opened
from prod9.models.checkpoint_places import find_recorded, sha256_at
from prod9.models.export import is_export
from prod9.models.run_folder import find_checkpoints
from prod9.training.data.module import AbstractDataModule
from prod9.training.lightning.autoencoder_lightning import AutoencoderLightning
from prod9.training.lightning.base import AbstractLightning, AnyRecipe
from prod9.training.lightning.controlnet_lightning import ControlNetLightning
from prod9.training.lightning.controlnet_maskgit_lightning import ControlNetLightningMaskGiT
from prod9.training.lightning.in_context_lightning import InContextTransformerLightning
from prod9.training.lightning.label_conditional_lightning import LabelConditionalTransformerLightning
from prod9.training.lightning.maisi_diffusion_lightning import MAISIDiffusionLightning
from prod9.training.lightning.maisi_vae_lightning import MAISIVAELightning
from prod9.training.lightning.refiner_lightning import RefinerLightning
from prod9.training.lightning.stage import StageLightning
from prod9.training.lightning.transformer_lightning import TransformerLightning
from prod9.training.recipes.base import Encoding
from prod9.training.recipes.table import recipe_of

log = logging.getLogger("prod9")

ADAPTERS: Mapping[type[AnyRecipe], type[AbstractLightning[Any]]] = {
    adapter.recipe_type: adapter
    for adapter in (
        AutoencoderLightning,
        MAISIVAELightning,
        TransformerLightning,
        LabelConditionalTransformerLightning,
        InContextTransformerLightning,
        MAISIDiffusionLightning,
        ControlNetLightning,
        ControlNetLightningMaskGiT,
        RefinerLightning,
    )
}
"""The adapters that have a name of their own; StageLightning drives any other recipe."""


def build_module(config: RunConfig, bases: Any = None) -> AbstractLightning[AnyRecipe]:
    """Return the adapter of ``config`` with the first weights of its seed; ``bases``: where they are already loaded."""
    kind = recipe_of(config)
    with torch.random.fork_rng(devices=[]):
        # Layers draw their first weights from the global generator and take no other.
        torch.manual_seed(config.seed)
        return ADAPTERS.get(kind, StageLightning)(config, kind(config, bases))


def build_data_module(
    config: RunConfig,
    bases: Any = None,
    *,
    device: torch.device | str = "cpu",
    encode: ParallelEncode | None = None,
) -> AbstractDataModule:
    """Return the data module of ``config``; stages 2 and 3 encode each volume once.

    Args:
        config: of the run.
        bases: what it builds on, where that is already loaded.
        device: where volumes are encoded.
        encode: an :class:`~prod9.training.data.encoders.EncoderPool` of the autoencoder; None encodes here.
    """
    recipe = recipe_of(config)
    bases = recipe.load_bases(config) if bases is None else bases
    return recipe.data_module(config, bases, Encoding(device, encode))


def load_bases(config: RunConfig, start: Opened | None = None, opened: Opened | None = None) -> Any:
    """Load what ``config`` builds on; None for a stage 1.

    opened: the checkpoint that ``inputs`` names, where it is open already.
    start: the checkpoint that a run goes on from. Where a base was named by its run folder and that run was trained on
    since, the base that ``start`` was trained on is loaded.
    """
    recorded = config if start is None else _with_recorded_inputs(config, start)
    return recipe_of(recorded).load_bases(recorded, opened if recorded is config else None)


def _with_recorded_inputs(config: RunConfig, start: Opened) -> RunConfig:
    # The best checkpoint of a run becomes another when it is trained on; a file that was named stays what was named.
    inputs = getattr(config, "inputs", None)
    changed: dict[str, str] = {}
    for name, recorded in start.header["inputs"].items():
        named = getattr(inputs, name, None)
        if named is None or not Path(named).is_dir() or is_export(Path(named)):
            continue
        now = next(iter(find_checkpoints(Path(named), prefer="best")), None)
        place = find_recorded(start.path, start.header, name)
        if place is not None and (now is None or sha256_at(now) != recorded["sha256"]):
            changed[name] = str(place)
            log.warning("inputs.%s: %s has moved on; going on upon %s, as before.", name, named, place)
    if not changed or inputs is None:
        return config
    return config.model_copy(update={"inputs": inputs.model_copy(update=changed)})
