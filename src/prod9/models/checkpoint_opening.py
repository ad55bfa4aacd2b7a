"""From a path to a checkpoint or an export that was read and recognised, and to those that it builds on."""

import logging
import stat
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor

from prod9.errors import CheckpointError
from prod9.models import export as exports
from prod9.models.checkpoint_encoder import has_encoder_of
from prod9.models.checkpoint_file import read_checkpoint
from prod9.models.checkpoint_header import (
    Header,
    Loaded,
    NewerFormatError,
    Opened,
    Source,
    WrongStageError,
    check_header,
)
from prod9.models.checkpoint_places import named_place, places_beside, recorded_places
from prod9.models.named.find import located, require_model
from prod9.models.released import RECTIFIED_FLOW
from prod9.models.run_folder import find_checkpoints
from prod9.stages import STAGES

Prefer = Literal["best", "last"]
M = TypeVar("M", bound="Loaded[Any] | Opened")
log = logging.getLogger("prod9")


def candidates(path: str | Path, *, prefer: Prefer = "best") -> list[Path]:
    """Return what the path or name ``path`` may mean, first choice first; raises CheckpointError when it is nothing."""
    path = require_model(path)
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a run folder, a checkpoint or an export folder, got none ({error}); "
            "check the path, or train that stage first."
        ) from error
    if not stat.S_ISDIR(kind) or exports.is_export(path):
        return [path]
    found = find_checkpoints(path, prefer=prefer)
    if not found:
        raise CheckpointError(
            f"{path}: expected a run folder with checkpoints, got none in it; train that stage first, or name "
            "another folder."
        )
    return found


def resolve(path: str | Path, *, prefer: Prefer = "best") -> Path:
    """Return the checkpoint file or export folder that ``path`` means.

    ``path`` is a checkpoint file, an export folder, or a run folder: then the best checkpoint by the
    monitored metric, or the last one when ``prefer`` says so. Raises CheckpointError when there is none.
    """
    return candidates(path, prefer=prefer)[0]


def open_checkpoint(
    path: Source, *, stage: str | Sequence[str] | None = None, prefer: Prefer = "best"
) -> Opened:
    """Read ``path`` and check its header; with ``stage``, other stages are refused.

    In a run folder a damaged file is reported and the next one is taken; a file that was named is not
    replaced by another. An ``Opened`` is checked and returned as it is. Raises CheckpointError.
    """
    if isinstance(path, Opened):
        check_header(path.path, path.header, stage)
        return path
    files = candidates(path, prefer=prefer)
    for file, following in pairwise(files):
        try:
            return _read(file, stage)
        except (WrongStageError, NewerFormatError):
            # The path is wrong, and the files beside this one are of that stage too; or this program is too old,
            # and would go on from an older file and replace the newer one.
            raise
        except CheckpointError as error:
            log.warning("%s Going on with %s.", error, following)
    return _read(files[-1], stage)


def _read(file: Path, stage: str | Sequence[str] | None) -> Opened:
    if file.is_dir():
        content, tensors, digest = exports.read_export(file)
        header = check_header(file, content, stage)
        prefix = STAGES[header["stage"]].prefix
        return _told(
            Opened(header, {prefix + name: tensor for name, tensor in tensors.items()}, file, digest)
        )
    content, digest = read_checkpoint(file)
    header, state = content.get("prod9"), content.get("state_dict")
    if not isinstance(header, dict) or not isinstance(state, dict):
        names = ", ".join(sorted(map(str, content))[:4])
        raise CheckpointError(
            f"{file}: expected a prod9 checkpoint, got a file of another program (it holds {names} …); "
            "use a checkpoint that prod9 wrote."
        )
    checked = check_header(file, header, stage)
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{file}: expected weights that are tensors, got something else under {str(name)[:60]!r}; use another "
                "checkpoint of the run, or copy the file again."
            )
    return _told(Opened(checked, state, file, digest))


def _told(opened: Opened) -> Opened:
    """Return ``opened`` after noting what it is."""
    header = opened.header
    log.info(
        "Opened %s: %s, step %s, SHA-256 %s….",
        opened.path,
        header["stage"],
        header["step"],
        opened.sha256[:12],
    )
    return opened


def load_base(
    loaded: Loaded[Any] | Opened,
    name: str,
    load: Callable[..., Loaded[Any]],
    path: Source | Loaded[Any] | None,
) -> Loaded[Any]:
    """Return the base ``name`` of ``loaded``: ``path`` if it is loaded already, else ``load`` of where it is.

    Args:
        loaded: what builds on it.
        name: its key in ``inputs``.
        load: loads a checkpoint of its kind.
        path: where it is now; None for where it was recorded.
    """
    if isinstance(path, Loaded):
        require_recorded(loaded, name, path)
        return path
    return find_base(loaded, name, load, path)


def find_base(loaded: Loaded[Any] | Opened, name: str, load: Callable[[Source], M], path: Source | None) -> M:
    """Return ``load`` of the base ``name`` that ``loaded`` was trained on, refusing any other.

    Args:
        loaded: the network or checkpoint that builds on it.
        name: its key in ``inputs``.
        load: opens or loads what it is given.
        path: where it is now; None looks where it was, then at the same place relative to the run.

    Raises CheckpointError when it is nowhere, or when its SHA-256 is not the recorded one.
    """
    recorded = loaded.header["inputs"].get(name)
    if recorded is None:
        raise CheckpointError(f"{loaded.path}: expected the {name} in `inputs`, got none recorded there.")
    tried: list[Source]
    if path is not None:
        tried = [path]
    else:
        # A place that holds another file by now is no mistake of the user's: the run may have a copy of its own.
        found = named_place(loaded.path, loaded.header, name)
        tried = [found] if found is not None else [*recorded_places(loaded.path, recorded, name)]
    for place in tried:
        if located(place).exists():
            base = load(place)
            require_recorded(loaded, name, base)
            return base
    raise CheckpointError(
        f"{loaded.path}: expected its {name} at {' or '.join(map(str, tried))}, got nothing there; "
        f"give its present path (--{name} PATH in commands)."
    )


def open_refiner(translator: Loaded[Any] | Opened) -> Opened | None:
    """Return the refiner that lies beside ``translator``; None where there is none that was trained on it."""
    for place in places_beside(translator.path):
        if not place.is_dir():
            continue
        try:
            refiner = open_checkpoint(place, stage="refiner")
            require_recorded(refiner, "transformer", translator)
        except CheckpointError as error:
            log.warning("%s Going on without a refiner.", error)
            continue
        return refiner
    return None


def require_recorded(loaded: Loaded[Any] | Opened, name: str, base: Loaded[Any] | Opened) -> None:
    """Refuse a base other than the one that ``loaded`` records as ``name``.

    An autoencoder that was tuned from that one with a frozen encoder is taken: it has the same latents and tokens.
    """
    recorded = loaded.header["inputs"][name]["sha256"]
    if base.sha256 != recorded and not has_encoder_of(base, recorded):
        raise CheckpointError(
            f"{base.path}: expected the {name} that {loaded.path} was trained on (SHA-256 "
            f"{recorded[:12]}…), got {base.sha256[:12]}…; its tokens mean something else. "
            "Name the right file, or train the later stage again."
        )


def require_schedule(header: Header, schedule: str, source: str | Path) -> None:
    """Refuse a diffusion network that was trained with another noise schedule than ``schedule``."""
    found = header["data"].get("schedule", RECTIFIED_FLOW)
    if found != schedule:
        raise CheckpointError(
            f"{source}: expected a network trained with the schedule {schedule}, got one trained with {found}; "
            f"its output is no velocity of a {schedule}. Load it with CheckpointManager.load_diffusion(path, "
            f"schedule={found!r}) and sample with MONAI's DDPMScheduler, or choose a rectified flow."
        )


def require_scans(model: Loaded[Any] | Opened) -> None:
    """Refuse (CheckpointError) an autoencoder of label maps, or a model on one, where scans are to be made."""
    section = model.header["architecture"].get("autoencoder") or {}
    if section.get("label_maps", False):
        raise CheckpointError(
            f"{model.path}: expected a model of scans, got one of label maps, which draws lesion masks; use `prod9 "
            "generate masks --model`."
        )
