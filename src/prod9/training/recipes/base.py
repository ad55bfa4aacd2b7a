"""AbstractRecipe: what a stage trains, on what, and what of it is measured.

A recipe holds the networks and the algorithm of a stage; it never logs, steps an optimizer or counts steps. The
adapters of :mod:`prod9.training.lightning` drive it. A stage is added by a record in :mod:`prod9.stages`, a section of
the configuration, and a recipe in :data:`prod9.training.recipes.table.RECIPES`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from prod9.conditions import with_covariates
from prod9.config.sections import RunSection
from prod9.data.stores.latents import ParallelEncode
from prod9.errors import ConfigError
from prod9.models.checkpoint_manager import Header, Loaded, Opened, load_strictly, weights_of
from prod9.models.checkpoint_places import describe_input
from prod9.training.algorithms.base import Losses
from prod9.training.algorithms.tally import Tally
from prod9.training.data.module import AbstractDataModule
from prod9.training.recipes.headline import Headline

C = TypeVar("C", bound=RunSection)
"""The configuration of a stage."""
B = TypeVar("B")
"""What a stage builds on, loaded; None for a stage 1."""
T = TypeVar("T", bound=Mapping[str, Any])
"""A batch of its data module, see :mod:`prod9.training.batches`."""


@dataclass(frozen=True)
class Panel:
    """One volume of a picture: ``data`` float32 ``[H W D]`` in [0, 1] on the CPU, under ``title``."""

    title: str
    data: np.ndarray


@dataclass(frozen=True)
class Samples:
    """Rows of volumes worth looking at, and what they measure."""

    rows: list[list[Panel]]
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoding:
    """How a base encodes volumes: on ``device`` in this process, or by ``encode`` in others."""

    device: torch.device | str = "cpu"
    encode: ParallelEncode | None = None


@dataclass(frozen=True)
class Draws:
    """Makes the generators of a validation: the same numbers at every validation, for each batch and each sample."""

    seed: int
    device: torch.device

    def for_batch(self, index: int) -> torch.Generator:
        """Return the generator of the losses of held-out batch ``index``."""
        return self.generator(index, 2)

    def for_sample(self, index: int) -> torch.Generator:
        """Return the generator of sample ``index``; calls with the same index draw the same numbers."""
        return self.generator(index, 3)

    def generator(self, *stream: int) -> torch.Generator:
        """Return a generator on the device, seeded from the run's seed and ``stream``."""
        return torch.Generator(self.device).manual_seed(mix(self.seed, *stream))


def mix(*values: int) -> int:
    """Return a seed in [0, 2⁶³) from ``values``; neighbouring values give unrelated streams."""
    # SeedSequence hashes; a sum would collide.
    return int(np.random.SeedSequence(list(values)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class AbstractRecipe(ABC, Generic[C, B, T]):
    """The training of one stage.

    Attributes:
        monitor: the metric that picks checkpoints, and its direction.
        metrics: what a validation usually measures, without ``val/``; one for each level or region may come on top.
        headline: what a validation says on the screen.
        convolutional: whether ``training.channels_last`` applies to its networks.
        config: of the run.
        bases: the stages that it builds on, loaded.
        algorithm: losses and metrics, an :class:`~prod9.training.algorithms.base.AbstractAlgorithm`.
        examples: batches of the current validation, kept for the picture.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/loss", "min")
    metrics: ClassVar[tuple[str, ...]]
    headline: ClassVar[Headline] = Headline(text="held-out loss {value}", metric="loss", digits=3)
    convolutional: ClassVar[bool] = False
    algorithm: Any

    def __init__(self, config: C, bases: B | None = None) -> None:
        self.config = config
        self.bases: B = self.load_bases(config) if bases is None else bases
        self.examples: list[T] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the recipe itself: weight averaging copies the adapter, and what is frozen needs no copy."""
        return self

    # -- what a recipe supplies -------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def load_bases(config: Any, opened: Opened | None = None) -> Any:
        """Load what ``config`` builds on; ConfigError where ``inputs`` lacks it.

        opened: the checkpoint that ``inputs`` names first, where it is open already.
        """

    @classmethod
    @abstractmethod
    def data_module(cls, config: C, bases: B, encoding: Encoding) -> AbstractDataModule:
        """Return the data module of ``config``; ``bases`` encode its volumes as ``encoding`` says."""

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """Return the networks that are trained by their prefix in the state dict, the main one first."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """Return the ``architecture`` of the checkpoint header: the sections that rebuild the network."""

    @abstractmethod
    def losses(self, batch: T, *, step: int, generator: torch.Generator) -> Losses:
        """Return the losses of a training batch; ``total`` is to be differentiated.

        Args:
            batch: of the data module.
            step: training batches done.
            generator: of all that is drawn.
        """

    @abstractmethod
    def tally(self, batch: T, index: int, draws: Draws) -> Tally:
        """Return what held-out batch ``index`` adds to the scores of the held-out set."""

    @abstractmethod
    def samples(self, count: int, draws: Draws) -> Samples:
        """Return at most ``count`` rows of volumes worth looking at, without gradient, after a validation."""

    # -- what some recipes change -----------------------------------------------------------------

    def inputs(self) -> dict[str, dict[str, str]]:
        """Return where the bases are and their hashes, for the header."""
        return {}

    def kept_inputs(self) -> dict[str, Path]:
        """Return the checkpoints to keep in the run's own folder, by name."""
        return {name: Path(recorded["path"]) for name, recorded in self.inputs().items()}

    def header_data(self) -> dict[str, Any]:
        """Return what the ``data`` of the header holds beside the geometry."""
        return {}

    def peak_rates(self) -> list[float]:
        """Return the peak learning rate of each network."""
        return [self.config.training.learning_rate]

    def take_weights(self, opened: Opened) -> None:
        """Load the weights of another run, strictly; those of a discriminator where the file has them.

        What the other run lacks of covariates begins as an embedding that adds nothing. Raises CheckpointError.
        """
        for position, (name, network) in enumerate(self.networks().items()):
            state = weights_of(opened.state_dict, f"{name}.")
            if state or position == 0:
                load_strictly(network, with_covariates(network, state), opened.path)

    def begin_anew(self) -> None:
        """Refuse (ConfigError) to start a run from no other weights, where it needs some."""

    def inherit(self, header: Header, *, same_run: bool) -> None:
        """Take over what belongs to the weights of ``header`` beside them; nothing by default.

        same_run: the run of ``header`` goes on or is measured; False where its weights start another run, whose data
        may be others.
        """

    def place(self, device: torch.device) -> None:
        """Bring what is frozen to ``device``: no adapter does, since it is in no module tree."""

    def prepare(self, data: AbstractDataModule) -> None:
        """Measure what has to be known before the first batch; ``data``: the data module, ready."""

    def start_note(self) -> str | None:
        """Return what to say about the first weights of a new run; None for nothing."""
        return None

    def yardsticks(self) -> dict[str, float]:
        """Return scores to compare the headline's with that follow from the configuration, by name."""
        return {}

    def begin_validation(self) -> None:
        """Forget the batches of the last validation."""
        self.examples = []

    def set_scores(self, draws: Draws) -> dict[str, Tensor]:
        """Return scores of a held-out set that are no sums over its batches, after the last of them."""
        del draws
        return {}

    # -- helpers ----------------------------------------------------------------------------------

    def keep_example(self, batch: T) -> None:
        """Keep the first few batches of a validation for the picture."""
        if len(self.examples) < self.config.callbacks.num_samples:
            self.examples.append(batch)

    def describe(self, base: Loaded[Any] | Opened) -> dict[str, str]:
        """Return what the header records of a base."""
        return describe_input(base.path, base.sha256, Path(self.config.output_dir))


def named_input(config: Any, key: str, *, what: str, example: str) -> str:
    """Return the path at ``inputs.<key>``; ConfigError where it is null.

    Args:
        config: of the run.
        key: of ``inputs``.
        what: the network that is expected there, for the message.
        example: an output folder to name in the remedy.
    """
    path = getattr(config.inputs, key)
    if path is None:
        raise ConfigError(
            f"inputs.{key}: expected the run folder or checkpoint of a trained {what}, got null; set it, for example "
            f"with --set inputs.{key}=outputs/{example}."
        )
    return path


def as_array(volume: Tensor) -> np.ndarray:
    """Return the first volume of ``[B 1 H W D]`` as float32 ``[H W D]`` in [0, 1] on the CPU."""
    return volume[0, 0].float().clamp(0, 1).cpu().numpy()
