"""RECIPES: the recipe of every stage; the one place that decides by stage."""

from collections.abc import Mapping
from typing import Any

from prod9.config.schema import RunConfig
from prod9.training.recipes.autoencoders import FSQRecipe, KLRecipe, LabelMapRecipe
from prod9.training.recipes.base import AbstractRecipe
from prod9.training.recipes.control import FlowControlRecipe, TokenControlRecipe
from prod9.training.recipes.detail import ReconstructionDetailRecipe, TranslationDetailRecipe
from prod9.training.recipes.flow import FlowRecipe
from prod9.training.recipes.refiner import RefinerRecipe
from prod9.training.recipes.transformers import InContextRecipe, LabelConditionalRecipe, TranslationRecipe

Recipe = type[AbstractRecipe[Any, Any, Any]]

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


def all_recipes() -> list[Recipe]:
    """Return every recipe, in the order of the table."""
    return [
        one
        for found in RECIPES.values()
        for one in (found.values() if isinstance(found, Mapping) else [found])
    ]
