"""``prod9.load``: a model by its name or path, ready to be called."""

from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from prod9.errors import ConfigError
from prod9.models.checkpoint_manager import CheckpointManager, Opened
from prod9.pipelines.control import ControlPipeline
from prod9.pipelines.loaded.models import (
    AutoencoderModel,
    ControlModel,
    LabelModel,
    Model,
    TranslationModel,
)
from prod9.pipelines.maisi import MAISIPipeline
from prod9.pipelines.maisi_control import MAISIControlPipeline
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.pipelines.reconstruction import ReconstructionPipeline
from prod9.pipelines.translation import TranslationPipeline
from prod9.stages import STAGES, Stage


def load(
    name_or_path: str | PathLike[str],
    device: str | torch.device = "auto",
    *,
    overrides: Sequence[Any] = (),
    **options: Any,
) -> Model[Any]:
    """Load a model by name, ready to be called.

    What is returned depends on the model: a :class:`LabelModel`, :class:`TranslationModel`, :class:`ControlModel` or
    :class:`AutoencoderModel`. Raises CheckpointError for what is no model, ConfigError for a device that the machine
    lacks and for a refiner or a detail flow, which work only with the model that they correct.

    Args:
        name_or_path: a run folder, a checkpoint, an export, a packaged model such as ``demo/translate``
            (``prod9 weights list`` names them), or ``hf:org/model@revision``.
        device: where to compute; ``auto`` is the fastest that the machine has.
        overrides: changes to the recorded config, such as ``"sampler.temperature=0.9"``.
        options: more arguments of the pipeline's ``from_checkpoint``, such as ``autoencoder`` or ``refine``.

    Example:
        >>> import prod9
        >>> prod9.load("demo/translate", device="cpu").labels
        ['T1', 'T1ce', 'T2', 'FLAIR']
    """
    opened = CheckpointManager.open(Path(name_or_path))
    kind, pipeline = kind_of(opened, str(name_or_path))
    sources: list[Opened] = [opened]  # given away with the first pipeline, since it holds all weights

    def build(where: torch.device, changes: Sequence[Any]) -> Any:
        source = sources.pop() if sources else opened_path
        return pipeline(source, device=where, overrides=[*overrides, *changes], **options)

    opened_path = opened.path
    title = STAGES[opened.header["stage"]].title
    del opened
    return kind(name=Path(name_or_path).as_posix(), title=title, build=build, device=device)


def kind_of(opened: Opened, name: str) -> tuple[type[Model[Any]], Any]:
    """Return the class of the model, and what makes its pipeline; ConfigError for one that corrects another's volumes.

    name: as it was asked for.
    """
    stage: Stage = STAGES[opened.header["stage"]]
    if stage.corrects:
        raise ConfigError(
            f"{name}: expected a model that makes volumes, got a {stage.title.lower()}, which corrects those of "
            "another model; load that one, which takes it by itself where it lies beside it."
        )
    if stage.number == 1:
        reconstruct = partial(
            ReconstructionPipeline.from_checkpoint,
            stage="autoencoder" if stage.family == "maskgit" else "maisi_vae",
        )
        return AutoencoderModel, reconstruct
    if stage.number == 3:
        steered = ControlPipeline if stage.family == "maskgit" else MAISIControlPipeline
        return ControlModel, steered.from_checkpoint
    if stage.family == "maisi":
        return LabelModel, MAISIPipeline.from_checkpoint
    if opened.header["architecture"]["transformer"].get("kind") == "label_conditional":
        return LabelModel, MaskGiTPipeline.from_checkpoint
    return TranslationModel, TranslationPipeline.from_checkpoint
