"""What a checkpoint says about itself, and what reading one gives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

from torch import Tensor, nn

import prod9
from prod9.errors import CheckpointError
from prod9.training.config_schema import RunConfig

FORMAT = 1
N = TypeVar("N", bound=nn.Module)


class WrongStageError(CheckpointError):
    """The checkpoint is sound but belongs to another stage."""


class Header(TypedDict):
    """What a checkpoint says about itself; plain JSON values throughout.

    architecture: network name to ``{"kind": …, **constructor keywords}``. config: the whole configuration.
    split: patient ids of train, val, test. step: training batches done. inputs: earlier stages as
    ``{"path", "relative", "sha256"}``. data: ``grid``, ``reference_affine`` (4×4, voxel to mm),
    ``label_map``, ``spacing``, ``intensity``.
    """

    format: int
    version: str
    stage: str
    architecture: dict[str, dict[str, Any]]
    config: dict[str, Any]
    split: dict[str, Any]
    step: int
    inputs: dict[str, dict[str, str]]
    data: dict[str, Any]


@dataclass(frozen=True)
class Loaded(Generic[N]):
    """A network in evaluation mode and what its file says. sha256: of ``path``, identifies the weights."""

    network: N
    header: Header
    path: Path
    sha256: str


@dataclass(frozen=True, eq=False)
class Opened:
    """A file that was read and recognised; ``state_dict`` has the prefixes of the manager's ``PREFIXES``.

    Whatever takes the path of a checkpoint takes this too, so that a command reads and hashes each file once. It holds
    all weights: let go of it when the network is built.
    """

    header: Header
    state_dict: dict[str, Tensor]
    path: Path
    sha256: str

    def __fspath__(self) -> str:
        """Return the path of the file or export folder, as ``os.PathLike`` wants it."""
        return str(self.path)

    def __str__(self) -> str:
        """Return the same for messages."""
        return str(self.path)


Source = str | Path | Opened
"""A run folder, a checkpoint file or an export folder; or what was opened of one."""


def make_header(
    config: RunConfig,
    *,
    architecture: dict[str, Any],
    step: int,
    split: dict[str, Any],
    inputs: dict[str, dict[str, str]],
    data: dict[str, Any],
) -> Header:
    """Return the header of a checkpoint of ``config.stage`` at ``step``."""
    return {
        "format": FORMAT,
        "version": prod9.__version__,
        "stage": config.stage,
        "architecture": architecture,
        "config": config.model_dump(mode="json"),
        "split": split,
        "step": step,
        "inputs": inputs,
        "data": data,
    }
