"""One checkpoint file on disk: a crash cannot damage it, and damage is noticed when it is read.

A file is written beside its destination, flushed and renamed, and its SHA-256 is put into ``<name>.sha256``. Its header
holds a digest of all tensors and values, and the archive a checksum of the header, so that damage is noticed without
that SHA-256 too. Files are read with ``weights_only=True`` only: tensors and plain values, never code.
"""

import hashlib
import math
import mmap
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from prod9.errors import CheckpointError, DataError
from prod9.files import atomic_write, reading, sha256
from prod9.models.checkpoint_header import DIGEST
from prod9.models.run_folder import LAST as LAST
from prod9.models.run_folder import PREVIOUS as PREVIOUS

HEADER = "prod9"

_REMEDY = "use another checkpoint of the run, or copy the file again"
_MIB = 2**20
_BYTEARRAY = b"bytearray"
_MOST_REPEATED = 16
"""How often a checkpoint may repeat the same memory, as tied weights and fresh averages do."""


def sidecar(path: Path) -> Path:
    """Return where the SHA-256 of ``path`` is kept."""
    return path.with_name(path.name + ".sha256")


def write_checkpoint(checkpoint: dict[str, Any], path: Path, *, keep_previous: bool = False) -> str:
    """Write ``checkpoint`` to ``path`` and return its SHA-256.

    keep_previous: keep the old content of ``path`` as ``previous.ckpt`` in the same folder. Raises CheckpointError
    when the disk has no room, before anything is changed; a failed write leaves the old file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _require_space(path, tensor_bytes(checkpoint))
    checkpoint = _with_digest(checkpoint)

    def write(temporary: Path) -> str:
        torch.save(checkpoint, temporary)
        return sha256(temporary)

    return _install(write, path, keep_previous=keep_previous)


def link_checkpoint(source: Path, target: Path, *, keep_previous: bool = False) -> None:
    """Make ``target`` another name of ``source``: checkpoints are replaced, never changed in place.

    It becomes a copy if the file system has no hard links, or ``target`` is on another one. keep_previous: as for
    :func:`write_checkpoint`.
    """
    if target.exists() and source.samefile(target):
        return

    def write(temporary: Path) -> str:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        return recorded_sha256(source)

    _install(write, target, keep_previous=keep_previous)


def _install(write: Callable[[Path], str], path: Path, *, keep_previous: bool) -> str:
    """Call ``write``, which makes the file and returns its SHA-256, then move the file and its hash into place."""
    try:
        with atomic_write(path) as temporary:
            digest = write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(
                    file.fileno()
                )  # a disk may be found full only here: before the last file is moved away
            if keep_previous and path.exists():
                _rotate(path, path.with_name(PREVIOUS))
            # A hash beside the wrong bytes would condemn a good file; a missing hash condemns nothing.
            sidecar(path).unlink(missing_ok=True)
        with atomic_write(sidecar(path)) as temporary:
            temporary.write_text(f"{digest}  {path.name}\n", encoding="ascii")
    except (DataError, RuntimeError) as error:  # the latter from torch, for a disk that fills up
        reason = str(error.__cause__ or error).split("\n")[0]
        raise DataError(
            f"{path}: cannot be written ({reason}); free some space, or choose another output_dir. The checkpoints "
            "written before are whole: the same command (`prod9 train` with --resume) goes on from the last of them."
        ) from error
    return digest


def remove_checkpoint(path: Path) -> None:
    """Delete ``path`` and its hash; a file that is already gone is fine."""
    path.unlink(missing_ok=True)
    sidecar(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], str]:
    """Return the content of ``path`` on the CPU, and its SHA-256.

    Raises CheckpointError when the file is missing or damaged (hash, digest or archive), holds anything but tensors and
    plain values, is no dictionary, or claims tensors larger than the file.
    """
    digest = verified_sha256(path)
    expected = "a checkpoint of tensors and plain values only"
    with reading(path, expected, error=CheckpointError, remedy=_REMEDY):
        _require_plain_archive(path)
        content = _load_plain(path)
        _require_own_size(content, path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: expected a dictionary, got {type(content).__name__}; use a checkpoint that prod9 wrote."
        )
    if not sidecar(path).is_file():
        _require_digest(content, path)
    return content, digest


def _load_plain(path: Path) -> Any:
    """Let torch read tensors and plain values, and nothing else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd bytes; what comes of them is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if not isinstance(error, pickle.UnpicklingError) and "weights_only" not in str(error):
            raise
        # torch's own text advises to unpickle whatever is in the file: the one thing that must not be done.
        raise CheckpointError(
            f"{path}: expected tensors and plain values only, got a file with other objects or damaged bytes; use "
            "a checkpoint that prod9 wrote."
        ) from None


def recorded_sha256(path: Path) -> str:
    """Return the SHA-256 of ``path`` recorded in the file beside it, or that of its content if there is none."""
    recorded = sidecar(path)
    words = recorded.read_text(encoding="ascii", errors="replace")[:200].split() if recorded.is_file() else []
    return words[0] if words else sha256(path)


def verified_sha256(path: Path) -> str:
    """Return the SHA-256 of ``path``; raise CheckpointError when the file beside it records another."""
    with reading(path, "a checkpoint file", error=CheckpointError, remedy=_REMEDY), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sidecar(path).is_file():
        with reading(sidecar(path), "a SHA-256", error=CheckpointError, remedy="delete it"):
            recorded = sidecar(path).read_text(encoding="ascii", errors="replace")[:200].split()
        if not recorded or recorded[0] != digest:
            raise CheckpointError(
                f"{path}: expected SHA-256 {recorded[0][:12] if recorded else 'in the file beside it'}…, got "
                f"{digest[:12]}…: the file is damaged; {_REMEDY}."
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


def content_digest(content: Any) -> str:
    """Return a SHA-256 of nested tensors and plain values: the same before a file is written and after it is read."""
    digest = hashlib.sha256()
    _feed(digest, content)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        if value.numel():
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, dict):
        digest.update(b"{%d" % len(value))
        for key, item in value.items():
            _feed(digest, key)
            _feed(digest, item)
    elif isinstance(value, (list, tuple)):
        digest.update(b"[%d" % len(value))
        for item in value:
            _feed(digest, item)
    elif isinstance(value, (set, frozenset)):
        _feed(digest, sorted(map(repr, value)))
    else:
        text = repr(value).encode(errors="surrogatepass")
        digest.update(b"%d:" % len(text) + text)


def _with_digest(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return ``checkpoint`` with a digest of everything except the header in its header."""
    header = checkpoint.get(HEADER)
    if not isinstance(header, dict):
        return checkpoint
    rest = {name: value for name, value in checkpoint.items() if name != HEADER}
    return checkpoint | {HEADER: header | {DIGEST: content_digest(rest)}}


def _require_digest(content: dict[str, Any], path: Path) -> None:
    """Refuse a file without recorded hash whose content differs from its digest. Older files have no digest."""
    header = content.get(HEADER)
    if not isinstance(header, dict) or DIGEST not in header:
        return
    with reading(path, "a checkpoint of plain values", error=CheckpointError, remedy=_REMEDY):
        found = _with_digest(content)[HEADER][DIGEST]
    if found != header[DIGEST]:
        raise CheckpointError(
            f"{path}: expected the content that was written, got another (digest {found[:12]}…): the file is damaged; "
            f"{_REMEDY}."
        )


def _require_plain_archive(path: Path) -> None:
    """Refuse a file that unpacks to more than its length, before reading it.

    torch writes archives without compression; a compressed one of 2 MB can expand to gigabytes. Older files of torch
    are no archives and store their tensors as they are. A bytearray is the only other type whose size a file can
    choose freely.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file, _mapped(file) as content:
            _refuse_bytearray(content.find(_BYTEARRAY) >= 0, path)
        return
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > size:
            raise CheckpointError(
                f"{path}: expected an archive that is not compressed, got one of {size} bytes that unpacks to more; "
                "use a checkpoint that prod9 wrote, or save it again with torch.save."
            )
        pickled = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        _refuse_bytearray(any(_BYTEARRAY in archive.read(entry) for entry in pickled), path)


@contextmanager
def _mapped(file: BinaryIO) -> Iterator[Any]:
    """Yield the content of ``file`` for searching, without reading it into memory."""
    if not os.fstat(file.fileno()).st_size:
        yield b""
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _refuse_bytearray(found: bool, path: Path) -> None:
    if found:
        raise CheckpointError(
            f"{path}: expected tensors and plain values only, got a file with other objects (a bytearray); use a "
            "checkpoint that prod9 wrote."
        )


def _require_own_size(content: Any, path: Path) -> None:
    """Refuse tensors much larger than the file: a view can repeat one value as often as it wants."""
    most, found = _MOST_REPEATED * path.stat().st_size + _MIB, tensor_bytes(content)
    if found > most:
        raise CheckpointError(
            f"{path}: expected tensors of at most {most} bytes in a file of its length, got {found}; use a checkpoint "
            "that prod9 wrote."
        )


def _rotate(path: Path, previous: Path) -> None:
    sidecar(previous).unlink(missing_ok=True)
    path.replace(previous)
    if sidecar(path).exists():
        sidecar(path).replace(sidecar(previous))


def _require_space(path: Path, needed: int) -> None:
    # Two per cent and a mebibyte for the archive's own structure.
    needed = int(needed * 1.02) + _MIB
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        # Rounded apart: two numbers that read the same would explain nothing.
        wanted, there = math.ceil(needed / _MIB * 10) / 10, math.floor(free / _MIB * 10) / 10
        raise CheckpointError(
            f"{path}: expected {wanted:.1f} MiB of free space, got {there:.1f} MiB; "
            "free some, or choose another output_dir. The checkpoints there are untouched."
        )
