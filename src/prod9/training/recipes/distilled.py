"""The teacher of a distilled flow: loaded from ``--init-from``, kept in the run's folder, recorded in the header."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prod9.config.schema import MaisiDiffusionConfig
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.errors import CheckpointError, ConfigError
from prod9.models.checkpoint_header import DISTILLED, recorded_config
from prod9.models.checkpoint_manager import (
    CheckpointManager,
    Header,
    Loaded,
    Opened,
    load_strictly,
    weights_of,
)
from prod9.models.checkpoint_places import describe_input, find_recorded
from prod9.models.factory import ModelFactory
from prod9.stages import STAGES
from prod9.training.algorithms.distillation_trainer import Teacher

TEACHER = "teacher"
"""What the run calls its own copy of the teacher."""
_STEP_SIZES = "step_size_embedding."


@dataclass(frozen=True, eq=False)
class DistilledFrom:
    """A teacher that is loaded.

    Attributes:
        network: frozen, in evaluation mode, with averaged weights where its run kept an average.
        teacher: what the algorithm follows.
        path: of its checkpoint.
        record: for the header of the student.
    """

    network: DiffusionModelRF
    teacher: Teacher
    path: Path
    record: dict[str, Any]

    @classmethod
    def opened(cls, opened: Opened, config: MaisiDiffusionConfig) -> "DistilledFrom":
        """Load the teacher of the new run ``config``.

        Raises CheckpointError for one of another flow, ConfigError for one that is guided by a weaker network.
        """
        loaded = CheckpointManager.load_diffusion(opened)
        assert config.distillation is not None
        own = recorded_config(loaded, MaisiDiffusionConfig)
        if own.flow != config.flow:
            raise CheckpointError(
                f"{opened.path}: expected a teacher of the configured flow, got another; set flow to that of the "
                f"teacher: {own.flow.model_dump(mode='json')}."
            )
        sampler = config.distillation.teacher or own.sampler
        if sampler.autoguidance_scale:
            raise ConfigError(
                f"{opened.path}: expected a teacher without autoguidance, which a student cannot learn, got "
                f"sampler.autoguidance_scale {sampler.autoguidance_scale:g}; say how it is sampled in "
                "distillation.teacher."
            )
        return cls._of(loaded, config, sampler)

    @classmethod
    def recorded(cls, header: Header, config: MaisiDiffusionConfig) -> "DistilledFrom":
        """Load the teacher that the run of ``header`` had; CheckpointError where it is not found."""
        run, record = Path(config.output_dir), header["data"].get(DISTILLED)
        if record is None:
            raise no_teacher()
        path = find_recorded(run / "any.ckpt", {"inputs": record}, TEACHER)
        if path is None:
            raise CheckpointError(
                f"{run}: expected the teacher of this run (SHA-256 {record[TEACHER]['sha256'][:12]}…) at "
                f"{record[TEACHER]['relative']} or in the run's folder inputs, got nothing there; put it back."
            )
        loaded = CheckpointManager.load_diffusion(path)
        sampler = type(config.sampler).model_validate(record["sampler"])
        return cls._of(loaded, config, sampler)

    @classmethod
    def _of(
        cls, loaded: Loaded[DiffusionModelRF], config: MaisiDiffusionConfig, sampler: Any
    ) -> "DistilledFrom":
        network = loaded.network.requires_grad_(False)
        place = describe_input(loaded.path, loaded.sha256, Path(config.output_dir))
        record = {
            # Relative, since headers are shared: no path of this computer belongs there.
            TEACHER: {**place, "path": place["relative"]},
            "steps": list(config.model.known_steps),
            "sampler": sampler.model_dump(mode="json"),
        }
        teacher = Teacher(
            velocity=network.predict, sampler=ModelFactory.create_flow_sampler(sampler, config.flow)
        )
        return cls(network, teacher, loaded.path, record)


def load_student(network: nn.Module, opened: Opened) -> None:
    """Load the weights of a teacher, strictly but for the embedding of the step size, which it lacks."""
    prefix = STAGES[opened.header["stage"]].prefix
    load_strictly(network, with_step_sizes(network, weights_of(opened.state_dict, prefix)), opened.path)


def with_step_sizes(network: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``state`` with the embedding of the step size of ``network`` where it has none."""
    own = {name: value for name, value in network.state_dict().items() if name.startswith(_STEP_SIZES)}
    return {**own, **state}


def no_teacher() -> ConfigError:
    """Return the error of a student without a teacher."""
    return ConfigError(
        "distillation: expected a teacher, the trained or released flow that is distilled, got none; name its run with "
        "--init-from."
    )
