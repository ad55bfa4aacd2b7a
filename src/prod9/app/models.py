"""The models of the app: where a name leads, what a model can do, and loading it once."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

from prod9.errors import CheckpointError, ConfigError
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.models.named.find import provenance
from prod9.pipelines.labels import AbstractLabelPipeline
from prod9.pipelines.loaded.load import kind_of
from prod9.pipelines.maisi import MAISIPipeline
from prod9.pipelines.maisi_control import MAISIControlPipeline
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.pipelines.recorded import Overrides
from prod9.pipelines.steering import AbstractControlPipeline
from prod9.pipelines.translation import TranslationPipeline

PACKAGED = ("demo/label", "demo/translate")
"""The packaged models that every app offers."""
_STAGES = ("transformer", "maisi_diffusion", "maskgit_controlnet", "maisi_controlnet")
_KEPT = 2
"""Models that stay in memory."""

Task = Literal["label", "inpaint", "translate", "control"]


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model.

    Attributes:
        name: as it was asked for.
        pipeline: what generates.
        tasks: what it can do.
    """

    name: str
    pipeline: AbstractLabelPipeline | TranslationPipeline | AbstractControlPipeline
    tasks: tuple[Task, ...]

    @property
    def generator(self) -> AbstractLabelPipeline:
        """The part that samples and decodes."""
        return self.pipeline if isinstance(self.pipeline, AbstractLabelPipeline) else self.pipeline.generator

    def to_dict(self) -> dict[str, Any]:
        """Return what the page has to know."""
        sources = self.pipeline.max_sources if isinstance(self.pipeline, TranslationPipeline) else 0
        return {
            "name": self.name,
            "tasks": list(self.tasks),
            "labels": self.generator.label_names(),
            "max_sources": sources,
            "grid": list(self.generator.grid),
            "note": provenance(self.name) or "",
        }


class Models:
    """Loads models by name and keeps the last ones.

    Args:
        names: the models to offer.
        device: where they work.
        overrides: changes to the recorded config of each.
    """

    def __init__(self, *, names: tuple[str, ...], device: str, overrides: Overrides = ()) -> None:
        self.names = names
        self.device = device
        self.overrides = overrides
        self._loaded: OrderedDict[str, Model] = OrderedDict()

    def get(self, name: str) -> Model:
        """Return the model ``name``, one of those offered. Raises ConfigError for another, CheckpointError."""
        if name not in self.names:
            raise ConfigError(
                f"model: expected one of {', '.join(self.names)}, got {name!r}; choose one of these."
            )
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        self._loaded.move_to_end(name)
        while len(self._loaded) > _KEPT:
            self._loaded.popitem(last=False)
        return self._loaded[name]

    def _load(self, name: str) -> Model:
        opened = CheckpointManager.open(name, stage=_STAGES)
        _, build = kind_of(opened, name)
        pipeline = build(opened, device=self.device, overrides=self.overrides)
        if isinstance(pipeline, MAISIControlPipeline) and pipeline.source_modalities:
            raise CheckpointError(
                f"{name}: expected a control network that takes a segmentation, got one that takes source images; "
                "use `prod9 generate control` for it."
            )
        return Model(name, pipeline, _tasks(pipeline))


def _tasks(pipeline: Any) -> tuple[Task, ...]:
    """Return what a pipeline can do."""
    if isinstance(pipeline, MaskGiTPipeline):
        return ("label", "inpaint")
    if isinstance(pipeline, MAISIPipeline):
        return ("label",)
    return ("translate",) if isinstance(pipeline, TranslationPipeline) else ("control",)
