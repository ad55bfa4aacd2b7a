"""The header of a checkpoint, and the results of reading one."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NotRequired, TypedDict, TypeVar

from torch import Tensor, nn

import prod9
from prod9.config.data import name_problem
from prod9.config.load import Overrides, config_from_dict
from prod9.config.schema import RunConfig
from prod9.config.sections import RunSection
from prod9.errors import CheckpointError
from prod9.stages import STAGES
from prod9.volumes import MAX_VOXELS

FORMAT = 1
DIGEST = "digest"
"""Key of the header with the digest of everything else in the file."""
DISTILLED = "distilled"
"""Key of the header's ``data``: ``steps`` that the network knows, its ``teacher`` by place and SHA-256, and the
``sampler`` of the teacher, whose guidance is part of the network."""
N = TypeVar("N", bound=nn.Module)
C = TypeVar("C", bound=RunSection)


class WrongStageError(CheckpointError):
    """The checkpoint is sound but belongs to another stage."""


class NewerFormatError(CheckpointError):
    """The checkpoint is sound but was written by a newer prod9: it is never replaced."""


class Header(TypedDict):
    """The header of a checkpoint; plain JSON values throughout.

    Attributes:
        format: of the checkpoint.
        version: of the prod9 that wrote it.
        stage: a name of :data:`prod9.stages.STAGES`.
        architecture: network name to ``{"kind": …, **constructor keywords}``.
        config: the whole configuration.
        split: patient ids of train, val, test.
        step: training batches done.
        inputs: the stages that it builds on, as ``{"path", "relative", "sha256"}``.
        data: ``grid``, ``reference_affine`` (4×4, voxel to mm), ``label_map``, ``spacing``, ``intensity``.
        validated: the step of the last whole validation.
        stopped_early: whether the run ended there because nothing improved any more.
        digest: of everything in the file except the header.
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
    validated: NotRequired[int]
    stopped_early: NotRequired[bool]
    digest: NotRequired[str]


@dataclass(frozen=True)
class Loaded(Generic[N]):
    """A network in evaluation mode and the header of its file; ``sha256`` of ``path`` identifies the weights."""

    network: N
    header: Header
    path: Path
    sha256: str


@dataclass(frozen=True, eq=False)
class Opened:
    """A file that was read and recognised; names in ``state_dict`` begin with the prefix of the stage.

    Every function that takes the path of a checkpoint takes an ``Opened`` too, so that a command reads and hashes each
    file once. It holds all weights: drop it when the network is built.
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


def recorded_config(source: "Opened | Loaded[Any]", kind: type[C], *, overrides: Overrides = ()) -> C:
    """Return the config that a checkpoint was trained with.

    Args:
        source: the checkpoint.
        kind: the class of its config; CheckpointError if the header holds another one.
        overrides: changes to it.
    """
    config = config_from_dict(source.header["config"], source=str(source.path), overrides=overrides)
    if not isinstance(config, kind):
        raise CheckpointError(
            f"{source.path}: expected a config of stage {source.header['stage']} in the header, got stage "
            f"{config.stage}; use another checkpoint of the run, or copy the file again."
        )
    return config


Source = str | Path | Opened
"""A run folder, a checkpoint file or an export folder; or an ``Opened`` of one."""


_TYPES: dict[str, type] = {
    "version": str, "stage": str, "architecture": dict, "config": dict, "split": dict, "step": int, "inputs": dict,
    "data": dict,
}  # fmt: skip


def check_header(file: Path, header: Any, stage: str | Sequence[str] | None) -> Header:
    """Return ``header`` unless this program cannot rely on it: another format or stage, or values of other types.

    stage: the stages that the caller can use; None for all. Raises CheckpointError, of its own class for a wrong stage
    and for a newer format.
    """
    found = header.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise NewerFormatError(
            f"{file}: expected checkpoint format {FORMAT}, got format {found} (written by prod9 "
            f"{header.get('version', 'unknown')}), which is newer than this program; use the prod9 version that wrote "
            "it. Nothing was changed."
        )
    missing = sorted(Header.__required_keys__ - set(header))
    if found != FORMAT or isinstance(found, bool) or missing:
        detail = f"format {found!r}" + (f" without {', '.join(missing)}" if missing else "")
        raise CheckpointError(
            f"{file}: expected checkpoint format {FORMAT}, got {detail} (written by prod9 "
            f"{header.get('version', 'unknown')}); use the prod9 version that wrote it."
        )
    for fault in _faults(header):
        raise CheckpointError(
            f"{file}: expected a header that prod9 wrote, got {fault}; use another checkpoint of the run, or copy the "
            "file again."
        )
    allowed = STAGES if stage is None else (stage,) if isinstance(stage, str) else stage
    if header["stage"] not in STAGES or header["stage"] not in allowed:
        allowed = tuple(allowed)
        wanted = " or ".join(allowed)
        raise WrongStageError(
            f"{file}: expected a checkpoint of stage {wanted}, got stage {header['stage']}; "
            f"name the {wanted} run instead; `prod9 train --config demo/{STAGES[allowed[0]].configs[0]}` trains one on "
            "the demo's patients."
        )
    return header


def _faults(header: dict[str, Any]) -> Iterator[str]:
    for name, kind in _TYPES.items():
        if not isinstance(header[name], kind) or isinstance(header[name], bool):
            yield f"{name} of type {type(header[name]).__name__}"
            return
    if not 0 <= header["step"] < 2**53:
        yield f"step {header['step']}"
    for name, section in header["architecture"].items():
        if not isinstance(section, dict):
            yield f"architecture.{name} of type {type(section).__name__}"
    for part, patients in header["split"].items():
        if not isinstance(patients, list) or not all(isinstance(patient, str) for patient in patients):
            yield f"split.{part} that is no list of names"
    for name, recorded in header["inputs"].items():
        texts = (
            [recorded.get(key) for key in ("path", "relative", "sha256")]
            if isinstance(recorded, dict)
            else [None]
        )
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            yield f"inputs.{name} without path, relative and sha256"
    validated = header.get("validated", 0)
    if not isinstance(validated, int) or validated < 0:
        yield f"validated {validated!r}"
    yield from _data_faults(header["data"])


def _data_faults(data: dict[str, Any]) -> Iterator[str]:
    grid, labels, spacing, affine = (
        data.get(key) for key in ("grid", "label_map", "spacing", "reference_affine")
    )
    if grid is not None and not (
        _are_numbers(grid, 3, int) and min(grid) > 0 and math.prod(grid) <= MAX_VOXELS
    ):
        yield f"data.grid {str(grid)[:60]}"
    if spacing is not None and not (_are_numbers(spacing, 3, int | float) and min(spacing) > 0):
        yield f"data.spacing {str(spacing)[:60]}"
    if affine not in (None, []) and not (
        isinstance(affine, list)
        and len(affine) == 4
        and all(_are_numbers(row, 4, int | float) for row in affine)
    ):
        yield f"data.reference_affine {str(affine)[:60]}"
    if labels is not None and not isinstance(labels, dict):
        yield f"data.label_map of type {type(labels).__name__}"
    for name, label in labels.items() if isinstance(labels, dict) else ():
        problem = name_problem(name) if isinstance(name, str) else "is no text"
        if problem or not isinstance(label, int):
            detail = problem or "stands for no number"
            yield f"the label {str(name)[:60]!r}, which {detail}, where data.label_map expected a name for files"


def _are_numbers(values: Any, count: int, kind: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(
            isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
            for value in values
        )
    )


def make_header(
    config: RunConfig,
    *,
    architecture: dict[str, Any],
    step: int,
    split: dict[str, Any],
    inputs: dict[str, dict[str, str]],
    data: dict[str, Any],
) -> Header:
    """Return the header of a checkpoint of ``config.stage`` at ``step``.

    Args:
        config: of the run.
        architecture: the keywords of its networks.
        step: of training.
        split: the patients of each part.
        inputs: by role, path and SHA-256 of the checkpoints that it builds on.
        data: grid, spacing and intensities of its volumes.
    """
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


def require_flow(header: Header, source: str | Path) -> None:
    """Refuse (CheckpointError) a distilled network where the velocities of a flow are needed."""
    record = header["data"].get(DISTILLED)
    if record is not None:
        steps = ", ".join(map(str, record["steps"]))
        raise CheckpointError(
            f"{source}: expected a flow, got a network that was distilled to {steps} steps, which predicts mean "
            f"velocities of whole steps; use its teacher (SHA-256 {record['teacher']['sha256'][:12]}…)."
        )
