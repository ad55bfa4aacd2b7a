"""Metrics as JSON lines: one object per step, which any program can read while the run goes on."""

import json
import math
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger


class JSONLinesLogger(Logger):
    """Appends ``{"step": …, name: value, …}`` to ``metrics.jsonl``; a resumed run goes on in the same file.

    path: the file; its folder is made at the first line. NaN and infinity, which JSON lacks, become null.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "jsonl"

    @property
    def version(self) -> str:
        """Empty: sessions share the file."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line, and flush it."""
        values = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError:
            if self.path.exists():
                os.truncate(self.path, size)  # the next line would be added to half of this one
            raise

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Leave hyper-parameters out: ``config.yaml`` beside the logs has them all."""
