"""Dice of trained networks, kept on disk as they come, so that an interrupted evaluation trains none of them again."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prod9 import __version__
from prod9.evaluation.sets.patients import PatientSet
from prod9.json_files import without_nan

FILE = "networks.partial.jsonl"


class KeptOverlaps:
    """A file with one line per network: its key, and the Dice ``[patients, regions]`` that it reached.

    A line that was cut off, or has another form, does not count.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Read what ``path`` holds; None keeps nothing. settings: plain values that decide what a network learns."""
        self.path = path
        self._settings = {**settings, "prod9": __version__}
        self._digests: dict[int, str] = {}
        self._found: dict[str, Tensor] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._read(line)

    def key(self, training: PatientSet, tested: PatientSet, seed: int) -> str:
        """Return what the result of a network depends on, as text; empty where nothing is kept."""
        if self.path is None:
            return ""
        about = [self._digest(training), self._digest(tested), seed, self._settings]
        return json.dumps(about, sort_keys=True)

    def get(self, key: str) -> Tensor | None:
        """Return the Dice of a network, NaN where there is none; None for a network that was not trained."""
        return self._found.get(key)

    def put(self, key: str, overlaps: Tensor) -> None:
        """Write the Dice ``[patients, regions]`` of a network; nothing without a path."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            content = {"key": key, "dice": without_nan(overlaps.tolist())}
            stream.write(json.dumps(content, allow_nan=False) + "\n")

    def _read(self, line: str) -> None:
        try:
            content = json.loads(line)
            rows = [[float("nan") if one is None else float(one) for one in row] for row in content["dice"]]
            self._found[str(content["key"])] = torch.tensor(rows)
        except (ValueError, KeyError, TypeError, RecursionError):
            return

    def _digest(self, patients: PatientSet) -> str:
        """Return a hash of names, volumes and masks: the files may have changed since."""
        number = id(patients)
        if number not in self._digests:
            digest = hashlib.sha256(json.dumps(patients.names).encode())
            for tensor in (patients.volumes, patients.masks):
                digest.update(tensor.contiguous().numpy().data)
            self._digests[number] = digest.hexdigest()
        return self._digests[number]
