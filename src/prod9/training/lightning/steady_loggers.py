"""Loggers whose errors never end a run, and that keep what they have written."""

import csv
import logging
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from prod9.files import atomic_write

log = logging.getLogger("prod9")


class SteadyLogger(Logger):
    """Passes everything to ``inner``; the first error there (a full disk) is reported, and the run goes on.

    Later values are tried again: the disk may have room by then.
    """

    def __init__(self, inner: Logger) -> None:
        super().__init__()
        self.inner = inner
        self._reported = False

    @property
    def name(self) -> str | None:
        """Name of the logger."""
        return self.inner.name

    @property
    def version(self) -> int | str | None:
        """Version of the logger."""
        return self.inner.version

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log ``metrics``."""
        self._try(lambda: self.inner.log_metrics(metrics, step=step))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log ``params``."""
        self._try(lambda: self.inner.log_hyperparams(params, *args, **kwargs))

    @rank_zero_only
    def save(self) -> None:
        """Write what is waiting."""
        self._try(self.inner.save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is waiting and close."""
        self._try(lambda: self.inner.finalize(status))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            if not self._reported:
                log.warning(
                    "The logger %s cannot write (%s); training goes on without its values.",
                    type(self.inner).__name__,
                    str(error) or type(error).__name__,
                )
            self._reported = True


class SteadyCSVLogger(CSVLogger):
    """Lightning's CSV logger; at any moment its file holds either the old rows or the new ones."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of the file; made at its first use."""
        if not isinstance(self._experiment, _WholeFile):
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _WholeFile(log_dir=self.log_dir)
        return self._experiment


class _WholeFile(ExperimentWriter):
    """Continues the file of a session that began at the same step, and rewrites it when columns are added."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir=log_dir)
        if self._path.is_file():
            with self._path.open(newline="", encoding="utf-8") as file:
                self.metrics_keys = next(csv.reader(file), [])

    @property
    def _path(self) -> Path:
        return Path(self.metrics_file_path)

    def save(self) -> None:
        """Write the waiting rows; they stay where that fails."""
        if not self.metrics:
            return
        keys = sorted({*self.metrics_keys, *(key for row in self.metrics for key in row)})
        if keys == self.metrics_keys and self._path.is_file():
            self._append(self.metrics)
        else:
            self._replace(keys, [*self._rows(), *self.metrics])
        self.metrics_keys, self.metrics = keys, []

    def _rows(self) -> list[dict[str, Any]]:
        if not self._path.is_file():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _replace(self, keys: list[str], rows: list[dict[str, Any]]) -> None:
        with atomic_write(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=keys)
            writer.writeheader()
            writer.writerows(rows)

    def _append(self, rows: list[dict[str, Any]]) -> None:
        size = self._path.stat().st_size
        try:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, fieldnames=self.metrics_keys).writerows(rows)
        except OSError:
            with self._path.open("rb+") as file:
                file.truncate(size)
            raise

    def _check_log_dir_exists(self) -> None:
        """Keep the files there, which Lightning's own logger would delete."""
