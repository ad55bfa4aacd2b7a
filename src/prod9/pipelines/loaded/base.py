"""What all models that are ready to be called have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from numbers import Integral
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch

from prod9.devices import torch_device
from prod9.errors import ConfigError
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
        self._sampler: tuple[int, Any] | None = None

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> list[Result]:
        """Return what the model makes."""

    @property
    @abstractmethod
    def labels(self) -> list[str]:
        """Names of the modalities or classes that it knows."""

    def to(self, device: str | torch.device) -> Self:
        """Compute on ``device`` from now on (``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``), and return the model.

        Its ``pipeline`` is a new one there, without what was set on the old one. Raises ConfigError for a device that
        the machine does not have.
        """
        device = torch_device(device)
        if device != self.device:
            self.device, self._sampler = device, None
            self.pipeline = self._build(device, ())
        return self

    def __repr__(self) -> str:
        """Return name, kind, labels, device and how it is called."""
        known = f", labels {', '.join(self.labels)}" if self.labels else ""
        return f"<{self.title} {self.name!r}{known}, on {self.device}; {self.usage}>"

    def _with_steps(self, steps: int | None) -> P:
        """Return the pipeline that samples in ``steps`` steps; ConfigError for a number that the model cannot take.

        Whatever was set on ``pipeline``, such as covariates, holds there too.
        """
        if steps is None:
            return self.pipeline
        count: Any = int(steps) if isinstance(steps, Integral) else steps
        if self._sampler is None or self._sampler[0] != count:
            built: Any = self._build(self.device, [("sampler.steps", count)])
            self._sampler = count, getattr(built, "generator", built).sampler
        return _sampled_by(self._sampler[1], self.pipeline)


def _sampled_by(sampler: Any, pipeline: P) -> P:
    """Return a copy of ``pipeline``, on the same networks, that draws with ``sampler``."""
    changed: Any = copy(pipeline)
    if hasattr(pipeline, "generator"):
        changed.generator = _sampled_by(sampler, changed.generator)
    else:
        changed.sampler = sampler
    return changed


def require_draw(num_samples: int, seed: int, batch_size: int = 1) -> None:
    """Raise ConfigError for what is no number of samples, no seed, or no number of samples drawn together."""
    for name, value, least in (
        ("num_samples", num_samples, 1),
        ("seed", seed, 0),
        ("batch_size", batch_size, 1),
    ):
        if not isinstance(value, Integral) or value < least:
            raise ConfigError(f"{name}: expected a whole number of at least {least}, got {value!r}.")


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
