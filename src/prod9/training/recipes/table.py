"""RECIPES: the recipe of every stage; the one place that decides by stage."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from prod9.config.schema import RunConfig
from prod9.errors import ConfigError
from prod9.training.recipes.autoencoders import FSQRecipe, KLRecipe, LabelMapRecipe
from prod9.training.recipes.base import AbstractRecipe
from prod9.training.recipes.control import FlowControlRecipe, TokenControlRecipe
from prod9.training.recipes.detail import ReconstructionDetailRecipe, TranslationDetailRecipe
from prod9.training.recipes.flow import FlowRecipe
from prod9.training.recipes.refiner import RefinerRecipe
from prod9.training.recipes.transformers import InContextRecipe, LabelConditionalRecipe, TranslationRecipe

Recipe = type[AbstractRecipe[Any, Any, Any]]
_SLIP = 0.9
"""How alike two names are, of 1, when one is a slip for the other."""

RECIPES: dict[str, Recipe | Mapping[str, Recipe]] = {
    "autoencoder": {"scans": FSQRecipe, "label_maps": LabelMapRecipe},
    "transformer": {
        "label_conditional": LabelConditionalRecipe,
        "decoder": TranslationRecipe,
        "single_stream": InContextRecipe,
    },
    "refiner": RefinerRecipe,
    "detail": ReconstructionDetailRecipe,
    "translation_detail": TranslationDetailRecipe,
    "maskgit_controlnet": TokenControlRecipe,
    "maisi_vae": KLRecipe,
    "maisi_diffusion": FlowRecipe,
    "maisi_detail": ReconstructionDetailRecipe,
    "maisi_controlnet": FlowControlRecipe,
}
"""By stage, and by what its ``config.variant`` is where a stage has several."""


def recipe_of(config: RunConfig) -> Recipe:
    """Return the recipe of ``config``."""
    found = RECIPES[config.stage]
    return found[config.variant] if isinstance(found, Mapping) else found


def metric_names(stage: str) -> tuple[str, ...]:
    """Return what a validation of ``stage`` usually measures, without ``val/``."""
    found = RECIPES[stage]
    return (next(iter(found.values())) if isinstance(found, Mapping) else found).metrics


def check_monitor(monitor: str, stage: str) -> None:
    """Refuse, before anything starts, a metric that no validation of ``stage`` will measure by that name.

    Not every validation measures everything, so a name that is not close to one of the usual names is accepted.
    """
    names = [f"val/{name}" for name in metric_names(stage)]
    known = {f"val/{name}" for other in RECIPES for name in metric_names(other)}
    slips = get_close_matches(monitor, names, n=1, cutoff=_SLIP)
    if monitor not in known and (slips or not monitor.startswith("val/")):
        hint = f"; did you mean {slips[0]!r}?" if slips else "; choose one."
        raise ConfigError(
            f"callbacks.checkpoint.monitor: expected one of {', '.join(names)}, got {monitor!r}{hint}"
        )
