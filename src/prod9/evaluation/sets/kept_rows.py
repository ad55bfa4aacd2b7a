"""Rows of volumes, kept on disk: what several processes computed of a set, one evaluation then reads."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prod9 import __version__
from prod9.evaluation.sets.entries import Entry
from prod9.files import atomic_write, sha256

FOLDER = "features"
_KEY, _PAIR = "key", "pair"
_ROW, _PLANE = "row ", "plane "


@dataclass(frozen=True)
class Described:
    """What is kept of one volume.

    Attributes:
        rows: name → ``[1 K]``.
        planes: extractor → features of slices along each axis, ``[1 S P]``.
        pair: MS-SSIM with the volume that it makes a pair with, ``[1]``; None where it completes no pair.
    """

    rows: dict[str, Tensor]
    planes: dict[str, list[Tensor]]
    pair: Tensor | None = None


class KeptRows:
    """A folder with one file per volume, which counts if its content and all settings are the same.

    Args:
        folder: where the files are.
        what: the set, as ``real``; part of the names.
        settings: plain values that decide the rows.
        writes: keep what is new too; otherwise files are only read.
    """

    def __init__(self, folder: Path, what: str, settings: Mapping[str, Any], *, writes: bool = False) -> None:
        self._folder = folder
        self._what = what
        self._settings = {**settings, "prod9": __version__}
        self._writes = writes
        self._hashes: dict[Path, str] = {}

    def name(self, entry: Entry) -> str:
        """Return the name of the file of a volume, whatever its content."""
        place = None if entry.channel is None else entry.channel.index
        text = json.dumps([self._what, entry.case_id, entry.modality, entry.path.name, place])
        return hashlib.sha256(text.encode()).hexdigest()[:32] + ".safetensors"

    def get(self, entry: Entry, partner: Entry | None) -> Described | None:
        """Return what is kept of ``entry``; None for nothing, or for that of other content or settings.

        partner: the volume that it makes a pair with.
        """
        path = self._folder / self.name(entry)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get(_KEY) != self._key(entry, partner):
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError):
            return None
        planes: dict[str, list[Tensor]] = {}
        for name in sorted(name for name in tensors if name.startswith(_PLANE)):
            planes.setdefault(name.removeprefix(_PLANE)[2:], []).append(tensors[name])
        rows = {name.removeprefix(_ROW): value for name, value in tensors.items() if name.startswith(_ROW)}
        return Described(rows, planes, tensors.get(_PAIR))

    def put(self, entry: Entry, partner: Entry | None, described: Described) -> None:
        """Keep what was found of ``entry``, if this object writes."""
        if not self._writes:
            return
        tensors = {_ROW + name: row for name, row in described.rows.items()}
        for name, planes in described.planes.items():
            tensors |= {f"{_PLANE}{axis} {name}": plane for axis, plane in enumerate(planes)}
        if described.pair is not None:
            tensors[_PAIR] = described.pair
        self._folder.mkdir(parents=True, exist_ok=True)
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with atomic_write(self._folder / self.name(entry)) as temporary:
            save_file(plain, temporary, metadata={_KEY: self._key(entry, partner)})

    def _key(self, entry: Entry, partner: Entry | None) -> str:
        contents = [None if one is None else self._hash(one.path) for one in (entry, partner)]
        return json.dumps([contents, self._settings], sort_keys=True)

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256(path)
        return self._hashes[path]
