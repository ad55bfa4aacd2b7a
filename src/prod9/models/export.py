"""Export folders, for sharing: weights as safetensors, the header as JSON, a model card, a manifest.

::

    model.safetensors   the network alone, its own parameter names
    config.json         the checkpoint's header
    README.md           model card
    manifest.json       SHA-256 and size of each of them

None of them can hold code. safetensors does not notice a changed byte; the manifest does.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prod9.errors import CheckpointError
from prod9.files import atomic_write, reading, sha256
from prod9.json_files import read_object
from prod9.models.cards import export_card

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
MANIFEST = "manifest.json"
_REMEDY = "fetch or export it again"
_FLOATS = {"float32": torch.float32, "float16": torch.float16}


def is_export(folder: Path) -> bool:
    """Return whether ``folder`` looks like an export folder."""
    return folder.is_dir() and (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def write_export(
    folder: Path, header: dict[str, Any], state: dict[str, Tensor], *, dtype: torch.dtype
) -> Path:
    """Write the four files and return ``folder``; the manifest comes last, so an unfinished export is no export.

    Args:
        folder: new or empty.
        header: of the checkpoint.
        state: names and weights.
        dtype: of the stored weights.
    """
    if dtype not in _FLOATS.values():
        raise CheckpointError(
            f"{folder}: expected dtype {' or '.join(_FLOATS)}, got {dtype}; choose one of them."
        )
    weights = {name: _cast(name, tensor, dtype, folder) for name, tensor in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    with atomic_write(folder / WEIGHTS) as temporary:
        try:
            save_file(weights, str(temporary), metadata={"format": "pt", "prod9_stage": header["stage"]})
        except SafetensorError as error:  # what a full disk is to that library
            raise OSError(str(error)) from error
    _write_text(folder / CONFIG, json.dumps({"prod9": header}, indent=2, ensure_ascii=False) + "\n")
    values = sum(t.numel() for t in weights.values())
    _write_text(folder / CARD, export_card(header, values, str(dtype).removeprefix("torch.")))
    files = {
        name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in (WEIGHTS, CONFIG, CARD)
    }
    _write_text(folder / MANIFEST, json.dumps({"files": files}, indent=2) + "\n")
    return folder


def recorded_sha256(folder: Path) -> str:
    """Return the SHA-256 of the weights that the manifest of ``folder`` records; CheckpointError without one."""
    return _listed(folder)[WEIGHTS]


def read_export(folder: Path) -> tuple[Any, dict[str, Tensor], str]:
    """Return header, weights in their stored dtype, and the SHA-256 of the weights file.

    Raises CheckpointError when the manifest is missing or a file differs from it.
    """
    digests = _verify(folder)
    header = read_header(folder)
    with reading(folder / WEIGHTS, "weights as safetensors", error=CheckpointError, remedy=_REMEDY):
        tensors = load_file(str(folder / WEIGHTS))
    return header, tensors, digests[WEIGHTS]


def read_header(folder: Path) -> dict[str, Any]:
    """Return the header of the export ``folder`` as it is; CheckpointError when there is none."""
    header = read_object(folder / CONFIG, "a header of prod9", error=CheckpointError, remedy=_REMEDY).get(
        "prod9"
    )
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{folder / CONFIG}: expected a header under `prod9`, got none; export it again."
        )
    return header


def _listed(folder: Path) -> dict[str, str]:
    """Return the hashes that the manifest lists."""
    expected = f"the hashes of {WEIGHTS} and {CONFIG}"
    remedy = "export it again, or fetch the whole folder"
    content = read_object(folder / MANIFEST, expected, error=CheckpointError, remedy=remedy)
    try:
        return {name: str(content["files"][name]["sha256"]) for name in (WEIGHTS, CONFIG)}
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / MANIFEST}: expected {expected}, got none ({error!r}); {remedy}."
        ) from error


def _verify(folder: Path) -> dict[str, str]:
    expected = _listed(folder)
    for name, digest in expected.items():
        with reading(folder / name, "a file of an export", error=CheckpointError, remedy=_REMEDY):
            found = sha256(folder / name)
        if found != digest:
            raise CheckpointError(
                f"{folder / name}: expected SHA-256 {digest[:12]}…, got {found[:12]}…: the file is damaged "
                "or was changed; fetch or export it again."
            )
    return expected


def _cast(name: str, tensor: Tensor, dtype: torch.dtype, folder: Path) -> Tensor:
    # Safetensors wants plain contiguous memory; channels_last weights are not.
    cast = (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous().clone()
    if tensor.is_floating_point() and not cast.isfinite().all():
        raise CheckpointError(
            f"{folder}: expected weights that {dtype} can hold, got {name} with values up to "
            f"{float(tensor.abs().max()):.3g}; export as float32."
        )
    return cast


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
