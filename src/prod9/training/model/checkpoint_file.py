"""One checkpoint file on disk: written so that a crash cannot damage it, read so that damage is noticed.

A file is written beside its destination, flushed, renamed, and its SHA-256 put into ``<name>.sha256``. Files
are read with ``weights_only=True`` and nothing else: tensors and plain values, never code.
"""

import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from prod9.errors import CheckpointError
from prod9.files import atomic_write, sha256

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"


def sidecar(path: Path) -> Path:
    """Return where the SHA-256 of ``path`` is kept."""
    return path.with_name(path.name + ".sha256")


def write_checkpoint(checkpoint: dict[str, Any], path: Path, *, keep_previous: bool = False) -> str:
    """Write ``checkpoint`` to ``path`` and return its SHA-256.

    keep_previous: what ``path`` held becomes ``previous.ckpt`` in the same folder. Raises CheckpointError
    when the disk has no room, before anything is touched; a failed write leaves the old file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _require_space(path, tensor_bytes(checkpoint))
    with atomic_write(path) as temporary:
        torch.save(checkpoint, temporary)
        digest = sha256(temporary)
        if keep_previous and path.exists():
            _rotate(path, path.with_name(PREVIOUS))
        # A hash beside the wrong bytes would condemn a good file; a missing hash condemns nothing.
        sidecar(path).unlink(missing_ok=True)
    with atomic_write(sidecar(path)) as temporary:
        Path(temporary).write_text(f"{digest}  {path.name}\n", encoding="ascii")
    return digest


def remove_checkpoint(path: Path) -> None:
    """Delete ``path`` and its hash; a file that is already gone is fine."""
    path.unlink(missing_ok=True)
    sidecar(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], str]:
    """Return the content of ``path`` on the CPU, and its SHA-256.

    Raises CheckpointError when the file is missing, damaged (hash or archive), holds anything but tensors and
    plain values, or is no dictionary.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint file, got nothing there; check the path.")
    digest = verified_sha256(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: expected tensors and plain values only, got a file with other objects or damaged bytes "
            f"({_first_line(error)}); use a checkpoint that prod9 wrote."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: expected a checkpoint archive, got damaged bytes ({_first_line(error)}); "
            "use another checkpoint of the run, or copy the file again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: expected a dictionary, got {type(content).__name__}; use a checkpoint that prod9 wrote."
        )
    return content, digest


def verified_sha256(path: Path) -> str:
    """Return the SHA-256 of ``path``; raise CheckpointError when the file beside it says another."""
    digest = sha256(path)
    if sidecar(path).is_file():
        recorded = sidecar(path).read_text(encoding="ascii", errors="replace").split()
        if not recorded or recorded[0] != digest:
            raise CheckpointError(
                f"{path}: expected SHA-256 {recorded[0][:12] if recorded else 'in the file beside it'}…, got "
                f"{digest[:12]}…: the file is damaged; use another checkpoint of the run, or copy it again."
            )
    return digest


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors in a nested dictionary or list."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(tensor_bytes(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(tensor_bytes(item) for item in value)
    return 0


def _rotate(path: Path, previous: Path) -> None:
    sidecar(previous).unlink(missing_ok=True)
    path.replace(previous)
    if sidecar(path).exists():
        sidecar(path).replace(sidecar(previous))


def _require_space(path: Path, needed: int) -> None:
    # Two per cent and a mebibyte for the archive's own structure.
    needed = int(needed * 1.02) + 2**20
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise CheckpointError(
            f"{path}: expected {needed / 2**20:.0f} MiB of free space, got {free / 2**20:.0f} MiB; "
            "free some, or choose another output_dir. The checkpoints there are untouched."
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
