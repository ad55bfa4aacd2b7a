"""How Lightning reads and writes checkpoint files: with :mod:`prod9.models.checkpoint_file`.

Lightning's own writer uses the system's temporary folder and never flushes: with that folder on another disk, a killed
run left damaged checkpoints in our tests.
"""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import CheckpointIO

from prod9.errors import CheckpointError
from prod9.models.checkpoint_file import LAST, read_checkpoint, remove_checkpoint, write_checkpoint

_STATE = ("prod9_run", "optimizer_states", "pytorch-lightning_version")
"""What a resumed run needs beside weights."""


class AtomicCheckpointIO(CheckpointIO):
    """Writes atomically with a SHA-256 file beside, keeps the previous ``last.ckpt``, reads tensors only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write ``checkpoint`` to ``path``; ``storage_options`` must be None."""
        if storage_options is not None:
            raise TypeError("storage_options must be None: checkpoints are local files")
        write_checkpoint(checkpoint, Path(path), keep_previous=Path(path).name == LAST)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values of ``path`` onto the CPU, whatever ``weights_only`` is.

        Raises CheckpointError when it holds weights, but no state of their training.
        """
        content, _ = read_checkpoint(Path(path))
        lacking = [name for name in _STATE if name not in content]
        if "prod9" in content and (lacking or not isinstance(content["prod9_run"], dict)):
            raise CheckpointError(
                f"{path}: expected a checkpoint with the state of its training, got weights alone (without "
                f"{', '.join(lacking) or 'prod9_run'}); start a new run from them with --init-from."
            )
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete ``path`` and its hash."""
        remove_checkpoint(Path(path))
