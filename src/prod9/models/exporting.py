"""Whole exports: a model together with its bases, wherever those are now."""

import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from prod9.errors import CheckpointError
from prod9.models import export as exports
from prod9.models.checkpoint_header import Header, Opened
from prod9.models.checkpoint_places import describe_input, find_recorded, recorded_places
from prod9.models.checkpoint_weights import weights_of
from prod9.models.weak import AUTO, WEAK
from prod9.stages import STAGES

REFINER = "refiner"
"""Folder of an export that holds the refiner of its translator."""


def export_whole(
    opened: Opened,
    folder: Path,
    *,
    dtype: torch.dtype,
    given: Mapping[str, Opened],
    open_input: Callable[[Path], Opened],
    refiner: Opened | None = None,
) -> Path:
    """Write the network of ``opened`` to ``folder``, with what it builds on; return ``folder``.

    Args:
        opened: the checkpoint or export.
        folder: of the export. Its bases go into folders below, named by their keys in ``inputs``.
        dtype: of the floating-point weights.
        given: exports to record instead, by key; they stay where they are.
        open_input: opens a checkpoint by its path.
        refiner: of a translator; it goes into the folder ``refiner``.

    Raises CheckpointError when a base cannot be found; nothing is left then.
    """
    header = _without_paths(opened.header)
    places = {name: _place(opened, name) for name in _inner_names(opened, given)}
    existed = folder.exists()
    bases: dict[str, tuple[Path, str, Any]] = {
        name: (o.path, o.sha256, o.header) for name, o in given.items()
    }
    try:
        for name, place in places.items():
            base = export_whole(
                open_input(place), folder / name, dtype=dtype, given={}, open_input=open_input
            )
            bases[name] = (base, exports.recorded_sha256(base), exports.read_header(base))
        inputs = {name: describe_input(path, sha256, folder) for name, (path, sha256, _) in bases.items()}
        header["inputs"] = inputs | _brought_along(opened, bases, folder)
        for recorded in header["inputs"].values():
            recorded["path"] = recorded["relative"]
        state = weights_of(opened.state_dict, STAGES[header["stage"]].prefix)
        exports.write_export(folder, dict(header), state, dtype=dtype)
        if refiner is not None:
            base = {"transformer": open_input(folder)}
            export_whole(refiner, folder / REFINER, dtype=dtype, given=base, open_input=open_input)
        return folder
    except BaseException:
        for name in (*places, *([] if refiner is None else [REFINER])):
            shutil.rmtree(folder / name, ignore_errors=True)
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def export_guided(
    opened: Opened,
    weak: Opened,
    folder: Path,
    *,
    dtype: torch.dtype,
    given: Mapping[str, Opened],
    open_input: Callable[[Path], Opened],
    refiner: Opened | None = None,
) -> Path:
    """Write ``opened`` as :func:`export_whole` does, and ``weak`` into a folder below, on the same autoencoder.

    Raises CheckpointError when a base cannot be found; nothing is left then.

    Args:
        opened: the model.
        weak: the weaker network that it is guided away from.
        folder: new or empty.
        dtype: of the stored weights.
        given: by role, what ``opened`` builds on, where that has moved.
        open_input: opens what was recorded.
        refiner: of a translator; None where there is none.
    """
    existed = folder.exists()
    export_whole(opened, folder, dtype=dtype, given=given, open_input=open_input, refiner=refiner)
    try:
        base = given.get("autoencoder") or open_input(folder / "autoencoder")
        export_whole(weak, folder / WEAK, dtype=dtype, given={"autoencoder": base}, open_input=open_input)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if existed:
            folder.mkdir()
        raise
    return folder


def _inner_names(opened: Opened, given: Mapping[str, Opened]) -> list[str]:
    """Return the keys of the bases to export too: not those that another base brings along."""
    names = [name for name in opened.header["inputs"] if name not in given]
    bases = [name for name in opened.header["inputs"] if name != "autoencoder"]
    return [name for name in names if name != "autoencoder" or not bases]


def _brought_along(
    opened: Opened, bases: Mapping[str, tuple[Path, str, Any]], folder: Path
) -> dict[str, dict[str, str]]:
    """Return the record of the autoencoder that the base of a stage 3 brings along, seen from ``folder``."""
    if "autoencoder" in bases or "autoencoder" not in opened.header["inputs"]:
        return {}
    for path, _, header in bases.values():
        place = find_recorded(path, header, "autoencoder")
        if place is not None:
            return {"autoencoder": describe_input(place, header["inputs"]["autoencoder"]["sha256"], folder)}
    raise CheckpointError(
        f"{opened.path}: expected its autoencoder beside the base that was given, got nothing there; name an export of "
        "it with --autoencoder, or export the base whole."
    )


def _place(opened: Opened, name: str) -> Path:
    place = find_recorded(opened.path, opened.header, name)
    if place is None:
        recorded = opened.header["inputs"][name]
        tried = " or ".join(map(str, recorded_places(opened.path, recorded, name)))
        raise CheckpointError(
            f"{opened.path}: expected the {name} that it was trained on at {tried}, to export it too, got nothing of "
            f"its SHA-256 {recorded['sha256'][:12]}… there; name an export of it with --{name}."
        )
    return place


def _without_paths(header: Header) -> Header:
    """Return a copy of ``header`` without paths of this computer, since exports are shared."""
    copy = deepcopy(header)
    copy.pop("digest", None)  # that of the file that the header came from
    config = copy["config"]
    config |= {"output_dir": "outputs"}
    config["data"] |= {"root": "data", "store_dir": None}
    if "split" in config["data"]:  # MedMNIST3D files are divided and kept in memory as they are
        config["data"] |= {"cache_dir": None, "split": config["data"]["split"] | {"file": None}}
    if "inputs" in config:
        config["inputs"] = dict.fromkeys(config["inputs"])
    if (config.get("covariates") or {}).get("file"):
        config["covariates"] |= {"file": Path(config["covariates"]["file"]).name}
    if "weak_model" in (config.get("sampler") or {}):
        config["sampler"] |= {"weak_model": AUTO}  # where an export keeps it
    return copy
