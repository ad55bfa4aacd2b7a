"""What all models that are ready to be called have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch

from prod9.devices import torch_device
from prod9.pipelines.labels import AbstractLabelPipeline
from prod9.pipelines.loaded.volumes import Result

P = TypeVar("P")
Build = Callable[[torch.device, Sequence[Any]], P]
"""Makes a pipeline on a device, with changes to the recorded config."""


class Model(ABC, Generic[P]):
    """A trained model that is ready to be called.

    Args:
        name: what the user called it.
        title: what it is, in words.
        build: makes its pipeline.
        device: where to compute.

    Attributes:
        pipeline: what does the work; it has more options.
        device: where it computes.
    """

    usage: ClassVar[str] = ""
    """How it is called, for ``repr``."""

    def __init__(self, *, name: str, title: str, build: Build[P], device: str | torch.device) -> None:
        self.name = name
        self.title = title
        self.device = torch_device(device)
        self._build = build
        self.pipeline: P = build(self.device, ())
        self._stepped: tuple[int, P] | None = None

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> list[Result]:
        """Return what the model makes."""

    @property
    @abstractmethod
    def labels(self) -> list[str]:
        """Names of the modalities or classes that it knows."""

    def to(self, device: str | torch.device) -> Self:
        """Compute on ``device`` from now on (``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``), and return the model.

        Raises ConfigError for a device that the machine does not have.
        """
        device = torch_device(device)
        if device != self.device:
            self.device, self._stepped = device, None
            self.pipeline = self._build(device, ())
        return self

    def __repr__(self) -> str:
        """Return name, kind, labels, device and how it is called."""
        known = f", labels {', '.join(self.labels)}" if self.labels else ""
        return f"<{self.title} {self.name!r}{known}, on {self.device}; {self.usage}>"

    def _with_steps(self, steps: int | None) -> P:
        """Return the pipeline that samples in ``steps`` steps; ConfigError for a number that the model cannot take."""
        if steps is None:
            return self.pipeline
        if self._stepped is None or self._stepped[0] != steps:
            self._stepped = steps, self._build(self.device, [("sampler.steps", steps)])
        return self._stepped[1]


class OnGenerator(Protocol):
    """A pipeline that makes volumes of the modalities or classes of a generator."""

    @property
    def generator(self) -> AbstractLabelPipeline:
        """The generator."""
        ...


G = TypeVar("G", bound=OnGenerator)


class GeneratorModel(Model[G]):
    """A model that knows the labels of the generator below it."""

    @property
    def labels(self) -> list[str]:
        """Names of the modalities or classes, in the order of their numbers."""
        return self.pipeline.generator.label_names()
