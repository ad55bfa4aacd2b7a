"""The manifest of a folder of results: the settings, and for each result notes and what it was made from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prod9.errors import DataError

MANIFEST = "manifest.json"
Inputs = Mapping[str, Mapping[str, str]]
"""What a result is made from: name → ``sha256`` of the content and, for a file, its ``path``."""


@dataclass
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        settings: values that decide the content of all files.
        files: name → notes about it.
        inputs: name → what it was made from.
        pending: names whose writing was begun and not finished.
    """

    settings: dict[str, Any]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    inputs: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Manifest | None":
        """Return the manifest at ``path``, None where there is none; DataError for anything else."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            settings, files = dict(content["settings"]), dict(content["files"])
            inputs = {
                str(name): {str(key): dict(value) for key, value in dict(one).items()}
                for name, one in dict(content.get("inputs", {})).items()
            }
            entries = {str(name): dict(entry) for name, entry in files.items()}
            return cls(settings, entries, inputs, [str(name) for name in content.get("pending", ())])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}: expected the manifest of an earlier run, got something else ({error}); choose "
                "another --output-dir, or replace it with --overwrite."
            ) from error

    def write(self, path: Path) -> None:
        """Write it to ``path``, atomically."""
        from prod9 import __version__
        from prod9.files import atomic_write

        with atomic_write(path) as temporary:
            # Sorted, so that it does not depend on the order in which the results were made.
            content = {**asdict(self), "files": _sorted(self.files), "inputs": _sorted(self.inputs)}
            text = json.dumps({"prod9": __version__, **content}, indent=2, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    def changed_inputs(self, name: str, inputs: Inputs) -> list[str]:
        """Return the inputs of ``name`` whose content is not that of ``inputs``."""
        then = self.inputs.get(name, {})
        return sorted(
            key for key in inputs.keys() | then.keys() if _content(inputs, key) != _content(then, key)
        )


def _content(inputs: Inputs, key: str) -> str | None:
    return inputs.get(key, {}).get("sha256")


def _sorted(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entries[name] for name in sorted(entries)}
