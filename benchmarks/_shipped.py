"""Recipes of shipped configurations with untrained networks, and batches of their real size, without any file."""

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from prod9.config.load import load_config, merge_config, shipped_configs
from prod9.config.schema import RunConfig, Stage1Config
from prod9.models.checkpoint_manager import Loaded, Opened, make_header
from prod9.models.meta import count_parameters
from prod9.planning.estimates import Resources, estimate
from prod9.stages import STAGES
from prod9.training.recipes.base import AbstractRecipe
from prod9.training.recipes.control import FlowControlBases, TokenControlBases
from prod9.training.recipes.reconstructor import Reconstructor
from prod9.training.recipes.table import recipe_of
from prod9.training.recipes.translator import Translator

BRATS = ("maskgit/brats/", "maisi/autoencoder/brats", "maisi/diffusion/brats")
STARTS = {"maisi/diffusion/brats_few_steps": "maisi/diffusion/brats"}
"""Configs that start from the weights of another."""
SHRINKS = Path(__file__).resolve().parents[1] / "tests" / "architecture" / "shrinks.yaml"
Changes = Callable[[str], Sequence[str]]
"""From the name of a configuration to what is set in it, as typed after ``--set``."""


def names() -> list[str]:
    """Return the shipped BraTS configurations."""
    return sorted(name for name in shipped_configs() if name.startswith(BRATS))


@cache
def _merged(name: str) -> dict[str, Any]:
    return merge_config(shipped_configs()[name])


def unchanged(name: str) -> Sequence[str]:
    """Return no change to the configuration ``name``."""
    del name
    return ()


def of_batch(size: int) -> Changes:
    """Return the changes to batches of ``size``, and to steps in which a discriminator takes part if there is one."""

    def changes(name: str) -> list[str]:
        adversarial = _merged(name).get("loss", {}).get("adversarial")
        return [f"data.batch_size={size}", *(["loss.adversarial.start_step=0"] if adversarial else [])]

    return changes


def shrunk(name: str) -> Sequence[str]:
    """Return the changes with which tests train ``name`` for a step."""
    groups = yaml.safe_load(SHRINKS.read_text(encoding="utf-8"))[name]
    return [change for changes in groups.values() for change in changes]


def config_of(name: str, changes: Changes = unchanged) -> RunConfig:
    """Return a shipped configuration with ``changes``."""
    return load_config(name, overrides=list(changes(name)), fill_variables=False)


def base_of(name: str) -> str | None:
    """Return the configuration that ``name`` builds on: the one that writes where its input is read."""
    key = STAGES[_merged(name)["stage"]].base_key
    if key is None:
        return None
    wanted = _merged(name)["inputs"][key]
    return next(other for other in shipped_configs() if _merged(other)["output_dir"] == wanted)


def chain(name: str) -> list[str]:
    """Return ``name`` and what it builds on, the nearest first."""
    below = base_of(name)
    return [name] if below is None else [name, *chain(below)]


def needs_of(name: str, changes: Changes = unchanged, device: Any = "cpu") -> Resources:
    """Return what the plan says that a training step needs."""
    config, *below = (config_of(one, changes) for one in chain(name))
    autoencoder = next((c.model for c in reversed(below) if isinstance(c, Stage1Config)), None)
    stage2 = below[0] if STAGES[config.stage].number == 3 else None
    if config.stage in ("refiner", "translation_detail"):
        autoencoder = None
    return estimate(config, count=count_parameters, base=stage2, autoencoder=autoencoder, device=device)  # type: ignore[arg-type]


def recipe(name: str, changes: Changes = unchanged) -> AbstractRecipe[Any, Any, Any]:
    """Return the recipe of ``name`` with untrained networks, upon untrained bases. changes: of every config."""
    config = config_of(name, changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = recipe_of(config)(config, _bases(name, config, changes))
    if name in STARTS:
        teacher = recipe(STARTS[name], changes)
        made.take_weights(_opened(STARTS[name], teacher))
        made.inherit(_header(teacher), same_run=False)
    elif config.stage == "maisi_diffusion":
        made.scale_factor = 1.0  # type: ignore[attr-defined]
    return made


def _bases(name: str, config: RunConfig, changes: Changes) -> Any:
    below = base_of(name)
    if below is None:
        return None
    lower = recipe(below, changes)
    # With their volumes in the store, these never load the networks that made them.
    if config.stage in ("refiner", "translation_detail"):
        return Translator(config, _opened(below, lower, weights=False), lower.config)  # type: ignore[arg-type]
    if config.stage in ("detail", "maisi_detail"):
        return Reconstructor(config, _opened(below, lower, weights=False))  # type: ignore[arg-type]
    if STAGES[config.stage].number == 3:
        kind = TokenControlBases if config.stage == "maskgit_controlnet" else FlowControlBases
        return kind(_loaded(below, lower), lower.bases)
    return _loaded(below, lower)


def _header(made: AbstractRecipe[Any, Any, Any]) -> Any:
    data = made.config.data
    spacing = list(data.spacing or (1.0, 1.0, 1.0))
    return make_header(
        made.config,
        architecture=made.architecture(),
        step=1,
        split={"train": [], "val": [], "test": []},
        inputs={},
        data={
            "grid": list(data.grid),
            "label_map": data.label_map,
            "spacing": spacing,
            "intensity": data.intensity.model_dump(mode="json"),
            "reference_affine": np.diag([*spacing, 1.0]).tolist(),
            "scale_factor": 1.0,
        },
    )


def _loaded(name: str, made: AbstractRecipe[Any, Any, Any]) -> Loaded[Any]:
    network = next(iter(made.networks().values()))
    return Loaded(network.eval(), _header(made), Path(made.config.output_dir) / "last.ckpt", name)


def _opened(name: str, made: AbstractRecipe[Any, Any, Any], *, weights: bool = True) -> Opened:
    prefix = STAGES[made.config.stage].prefix
    network = next(iter(made.networks().values()))
    state = {f"{prefix}{key}": value for key, value in network.state_dict().items()} if weights else {}
    return Opened(_header(made), state, Path(made.config.output_dir) / "last.ckpt", name)


# -- batches --------------------------------------------------------------------------------------------


def whole_fraction(config: Any) -> float:
    """Return the share of the steps that see whole volumes; only stage 1 changes between them and crops."""
    if config.data.crop_size is None:
        return 1.0
    return config.data.whole_volume_fraction if STAGES[config.stage].number == 1 else 0.0


def batch_of(made: AbstractRecipe[Any, Any, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return a training batch of the configured size, of random heads; stage 1 sees whole volumes where it may."""
    config, data = made.config, made.config.data
    whole = data.crop_size is None or whole_fraction(config) > 0
    sides = data.grid if whole else data.crop_size
    count = 1 if whole and data.crop_size is not None else data.batch_size
    generator = torch.Generator().manual_seed(0)

    def volumes(channels: int, *, size: int = count) -> torch.Tensor:
        inside = _head(sides)
        return (torch.rand(size, channels, *sides, generator=generator) * 0.9 + 0.1) * inside

    labels = torch.tensor(sorted(data.label_map.values()))[torch.arange(count) % len(data.label_map)]
    batch: dict[str, Any] = {"label": labels, "case_id": ["case"] * count, "modality": ["T1"] * count}
    fill = _FILLS[config.stage]
    batch |= fill(made, volumes, count, generator)
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _head(sides: Any) -> torch.Tensor:
    axes = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in sides), indexing="ij")
    return (sum((axis / 0.85) ** 2 for axis in axes) <= 1).float()  # type: ignore[union-attr]


def _lesion(count: int, sides: Any) -> torch.Tensor:
    seg = torch.zeros(count, *sides, dtype=torch.uint8)
    seg[(slice(None), *(slice(side // 3, side // 2) for side in sides))] = 2
    return seg


def _stage1(made: Any, volumes: Callable[..., torch.Tensor], count: int, generator: Any) -> dict[str, Any]:
    return {"image": volumes(1)}


def _tokens(made: Any, volumes: Any, count: int, generator: torch.Generator) -> dict[str, Any]:
    grid, data = made.autoencoder.latent_grid, made.config.data
    section = made.autoencoder.section["levels"]
    found = {
        "target_indices": torch.randint(prod(section), (count, *grid), generator=generator),
        "foreground": _head(grid).bool().expand(count, *grid),
    }
    if (covariates := getattr(made.config.model, "covariates", None)) is not None:
        found["covariates"] = torch.rand(count, *covariates, generator=generator)
    if getattr(made.config.model, "kind", None) == "single_stream":
        slots = made.config.in_context.slots(data.images_per_case)
        labels = torch.arange(1, slots + 1).expand(count, slots) % len(data.label_map)
        found["source_labels"] = labels.contiguous()
        found["source_latents"] = torch.rand(count, slots, len(section), *grid, generator=generator)
        found["co_registered"] = torch.ones(count, slots, dtype=torch.bool)
    return found


def _control_tokens(made: Any, volumes: Any, count: int, generator: torch.Generator) -> dict[str, Any]:
    found = _tokens(made, volumes, count, generator)
    return found | {
        "seg": _lesion(count, made.config.data.grid),
        "has_seg": torch.ones(count, dtype=torch.bool),
    }


def _flow(made: Any, volumes: Any, count: int, generator: torch.Generator) -> dict[str, Any]:
    grid, channels = made.autoencoder.latent_grid, made.autoencoder.section["latent_channels"]
    return {
        "latent": torch.randn(count, channels, *grid, generator=generator),
        "foreground": _head(grid).bool().expand(count, *grid),
        "spacing": torch.ones(count, 3),
    }


def _control_flow(made: Any, volumes: Any, count: int, generator: torch.Generator) -> dict[str, Any]:
    found, wanted = _flow(made, volumes, count, generator), made.config.condition
    found |= {"seg": _lesion(count, made.config.data.grid), "has_seg": torch.ones(count, dtype=torch.bool)}
    if wanted.source_modalities:
        found["images"] = volumes(len(wanted.source_modalities))
    if made.config.start is not None:
        found["source_latent"] = found["latent"].clone()
    return found


def _refined(made: Any, volumes: Callable[..., torch.Tensor], count: int, generator: Any) -> dict[str, Any]:
    sources = volumes(made.config.model.num_sources if hasattr(made.config.model, "num_sources") else 0)
    classes = len(made.config.data.label_map)
    sources = sources if sources.shape[1] else volumes(classes)
    scan = volumes(1)
    present = torch.ones(count, sources.shape[1], dtype=torch.bool)
    return {
        "decoded": volumes(1),
        "sources": sources,
        "present": present,
        "target": scan,
        "clean": scan.clone(),
        "region": scan > 0.95,
        "head_voxels": (sources > 0).any(1).flatten(1).sum(1),
    }


_FILLS: dict[str, Callable[..., dict[str, Any]]] = {
    "autoencoder": _stage1, "maisi_vae": _stage1, "transformer": _tokens, "maskgit_controlnet": _control_tokens,
    "maisi_diffusion": _flow, "maisi_controlnet": _control_flow, "refiner": _refined, "detail": _refined,
    "translation_detail": _refined, "maisi_detail": _refined,
}  # fmt: skip
"""By stage: what its batch holds beside labels and names."""
