"""Translator: the trained model whose translations a refiner learns to correct, and a detail flow to sharpen."""

import logging
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from prod9.config.schema import RefinerConfig, TransformerConfig, TranslationDetailConfig
from prod9.data.splits import Split
from prod9.errors import ConfigError
from prod9.models.checkpoint_header import recorded_config
from prod9.models.checkpoint_manager import CheckpointManager, Opened, require_recorded
from prod9.models.checkpoint_opening import open_refiner
from prod9.pipelines.translation import TranslationPipeline
from prod9.training.recipes.base import named_input

log = logging.getLogger("prod9")


@dataclass(frozen=True, eq=False)
class Translator:
    """A stage-2 run that makes a modality from others, as ``inputs`` of ``config`` names it.

    Its networks are loaded when the first translation is asked for: with all of them in the store, never. ``refiner``,
    where there is one, corrects what it makes.
    """

    config: RefinerConfig | TranslationDetailConfig
    opened: Opened
    recorded: TransformerConfig
    device: str | torch.device = "cpu"
    refiner: Opened | None = None

    @property
    def split(self) -> Split:
        """The patients that it was trained on and not."""
        return Split.from_dict(self.opened.header["split"])

    @property
    def num_sources(self) -> range:
        """How many sources a translation may have, at least one."""
        if self.recorded.model.kind == "decoder":
            return range(1, 2)
        numbers = self.recorded.in_context.sources(len(self.recorded.data.modalities))
        return range(max(1, numbers[0]), numbers[-1] + 1)

    @property
    def settings(self) -> list[str]:
        """All that its translations depend on beside their sources: weights, windows and, of samples, how."""
        autoencoder = self.opened.header["inputs"]["autoencoder"]["sha256"]
        parts = [self.opened.sha256, autoencoder, self.config.sliding_window.model_dump_json()]
        if self.config.translations.decode == "sample":
            parts += [self.recorded.sampler.model_dump_json(), self.recorded.masking.model_dump_json()]
        refiner = [] if self.refiner is None else [self.refiner.sha256]
        return [*parts, self.config.translations.decode, *refiner]

    def __call__(self, sources: dict[str, np.ndarray], target: str, *, seed: int) -> np.ndarray:
        """Return ``target`` as decoded or refined, float32 ``[H W D]`` in [0, 1]; ``sources`` are on the grid."""
        translation = self._pipeline.translate(
            sources, target, seed=seed, decode=self.config.translations.decode
        )
        return translation.mean

    @cached_property
    def _pipeline(self) -> TranslationPipeline:
        return TranslationPipeline.from_checkpoint(
            self.opened,
            device=self.device,
            autoencoder=self.config.inputs.autoencoder,
            overrides=[("sliding_window", self.config.sliding_window.model_dump(mode="json"))],
            refiner=self.refiner,
            refine=self.refiner is not None,
            detail=None,
        )


def load_translator(
    config: RefinerConfig | TranslationDetailConfig,
    *,
    device: str | torch.device = "cpu",
    opened: Opened | None = None,
) -> Translator:
    """Read the header of ``inputs.transformer``, and refuse what ``config`` does not fit (ConfigError)."""
    path = named_input(config, "transformer", what="translator", example="stage2")
    opened = CheckpointManager.open(opened or path, stage="transformer")
    recorded = recorded_config(opened, TransformerConfig)
    if recorded.model.kind == "label_conditional":
        raise ConfigError(
            f"inputs.transformer: expected a model of kind 'single_stream' or 'decoder', got {opened.path} of kind "
            "'label_conditional', which takes no source; name demo/translate or a run of the stage2 configs."
        )
    for key in ("grid", "spacing", "intensity", "label_map"):
        ours, theirs = config.data.model_dump(mode="json")[key], opened.header["data"][key]
        if ours != theirs:
            raise ConfigError(
                f"data.{key}: expected that of {opened.path}, {theirs}, got {ours}; it translates volumes prepared "
                "its way alone"
            )
    return Translator(config, opened, recorded, device)


def load_refined_translator(
    config: TranslationDetailConfig, *, device: str | torch.device = "cpu", opened: Opened | None = None
) -> Translator:
    """Return the same with the refiner of ``inputs.refiner``, or with what lies beside the translator, if anything."""
    translator = load_translator(config, device=device, opened=opened)
    named = config.inputs.refiner
    if named is not None:
        refiner = CheckpointManager.open(named, stage="refiner")
        require_recorded(refiner, "transformer", translator.opened)
        return replace(translator, refiner=refiner)
    return replace(translator, refiner=open_refiner(translator.opened))
