"""Dice of trained networks, kept on disk as they come, so that an interrupted evaluation trains none of them again."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prod9.evaluation.sets.kept_pairs import AbstractKept, number_of
from prod9.evaluation.sets.patients import PatientSet

FILE = "networks.partial.jsonl"


class KeptOverlaps(AbstractKept[Tensor]):
    """The Dice ``[patients, regions]`` that each network reached, NaN where there is none."""

    field = "dice"

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Read what ``path`` holds; None keeps nothing. settings: plain values that decide what a network learns."""
        self._digests: dict[int, str] = {}
        super().__init__(path, settings)

    def key(self, training: PatientSet, tested: PatientSet, seed: int) -> str:
        """Return what the result of a network depends on, as text; empty where nothing is kept."""
        if self.path is None:
            return ""
        about = [self._digest(training), self._digest(tested), seed, self.settings]
        return json.dumps(about, sort_keys=True)

    def plain(self, result: Tensor) -> Any:
        """Return the Dice as lists."""
        return result.tolist()

    def parsed(self, content: Any) -> Tensor:
        """Return the Dice of a line."""
        return torch.tensor([[number_of(one) for one in row] for row in content])

    def _digest(self, patients: PatientSet) -> str:
        """Return a hash of names, volumes and masks: the files may have changed since."""
        number = id(patients)
        if number not in self._digests:
            digest = hashlib.sha256(json.dumps(patients.names).encode())
            for tensor in (patients.volumes, patients.masks):
                digest.update(tensor.contiguous().numpy().data)
            self._digests[number] = digest.hexdigest()
        return self._digests[number]
