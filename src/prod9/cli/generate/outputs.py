"""Folders of results that a command can fill in several runs, and several commands at the same time.

A folder belongs to one model and one set of settings, written into ``manifest.json`` before the first result. The
manifest holds, for each result, hashes of the files that it was made from. A second run keeps a result that is complete
and made from the same content, and makes the others again. Results of other settings are refused, never mixed in.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prod9.cli.front.after import tell_next
from prod9.cli.generate.writers import Writer, sweep
from prod9.cli.shared import console, messages, print_json
from prod9.errors import ConfigError, DataError
from prod9.json_files import without_nan
from prod9.system.machine import expand
from prod9.system.wording import plural

MANIFEST = "manifest.json"
Inputs = Mapping[str, Mapping[str, str]]
"""What a result is made from: name → ``sha256`` of the content and, for a file, its ``path``."""


@dataclass
class _Manifest:
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
    def read(cls, path: Path) -> "_Manifest | None":
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
            text = json.dumps({"prod9": __version__, **asdict(self)}, indent=2, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")


class OutputFolder:
    """An output folder and its manifest: ``settings`` (what was asked) and ``files`` (what was made).

    Use it as a context manager. Raises DataError when the folder cannot be written, ConfigError when it holds results
    of other settings.

    Args:
        path: the folder; made if missing.
        settings: plain values that decide the content of all files; not ``num_samples`` and the like, and not what
            single files are made from, which goes into their ``inputs``.
        described: more to write beside the settings (name → value by name); added to what is there, not compared.
        overwrite: replace existing results.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        described: Mapping[str, Mapping[str, Any]] | None = None,
        overwrite: bool = False,
    ) -> None:
        from prod9.files import check_writable, exclusive

        self.path = expand(path)
        self.overwrite = overwrite
        self.settings: dict[str, Any] = _plain(settings)
        self._described: dict[str, dict[str, Any]] = _plain(described or {})
        self._manifest = _Manifest({})
        check_writable(self.path)
        with exclusive(self.path):
            self._writer = Writer(self.path)
            try:
                self._join()
            except BaseException:
                self._writer.leave()
                raise

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """The results by name, with the notes about each."""
        return self._manifest.files

    def __enter__(self) -> Self:
        """Return the folder."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop writing; a manifest without results is deleted."""
        from prod9.files import exclusive

        if not self.path.is_dir():
            return
        with exclusive(self.path):
            self._writer.leave()
            if not self.files and not self._writer.others():
                (self.path / MANIFEST).unlink(missing_ok=True)

    def is_done(self, name: str, inputs: Inputs | None = None) -> bool:
        """Return whether ``name`` exists, with these settings and made from the content of ``inputs``.

        Refuses (ConfigError) a file of unknown origin, and one that was made from another file with other content,
        since replacing it would lose it.
        """
        place = self.place(name)
        if self.overwrite or not place.exists():
            return False
        if name not in self.files:
            raise ConfigError(
                f"{place}: exists, but {MANIFEST} does not say how it was made; move it away, choose "
                "another --output-dir, or replace it with --overwrite."
            )
        if name in self._manifest.pending:
            return False
        now, then = dict(inputs or {}), self._manifest.inputs.get(name, {})
        changed = sorted(key for key in now.keys() | then.keys() if _content(now, key) != _content(then, key))
        for key in changed:
            made_from, given = then.get(key, {}).get("path"), now.get(key, {}).get("path")
            if made_from is not None and given is not None and made_from != given:
                raise ConfigError(
                    f"{place}: was made from {made_from}, and would be replaced by the result of {given}; choose "
                    "another --output-dir, or replace it with --overwrite."
                )
        if changed:
            messages.print(f"{name} is made again, since this has changed: {', '.join(changed)}.")
        return not changed

    @contextmanager
    def writing(self, name: str, *, inputs: Inputs | None = None, **entry: Any) -> Iterator[Path]:
        """Yield where to write ``name``, its folder made; the block writes it atomically.

        The manifest lists it as pending before and as done after the block, so a crash leaves no file of unknown
        origin, and no incomplete file that counts as done.
        """
        place = self.place(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        self._note(name, pending=True, entry=entry, inputs=inputs)
        yield place
        self._note(name, pending=False)

    def place(self, name: str) -> Path:
        """Return the path of ``name``; DataError when it would lie elsewhere."""
        from prod9.files import inside

        return inside(self.path, name)

    def _inside(self, name: str) -> Path | None:
        """Return the path of a name from a manifest; None where it would lie elsewhere."""
        try:
            return self.place(name)
        except DataError:
            return None

    def _note(
        self, name: str, *, pending: bool, entry: dict[str, Any] | None = None, inputs: Inputs | None = None
    ) -> None:
        from prod9.files import exclusive

        with exclusive(self.path):
            found = self._read()
            if found is not None:
                self._require_settings(found, "another process has filled meanwhile with results")
                self._manifest = found
            manifest = self._manifest
            manifest.pending = sorted({*manifest.pending, name} if pending else {*manifest.pending} - {name})
            if entry is not None:
                manifest.files[name] = _plain(entry)
                manifest.inputs.pop(name, None)
            if inputs:
                manifest.inputs[name] = _plain(inputs)
            manifest.write(self.path / MANIFEST)

    def _join(self) -> None:
        """Read the manifest, refuse other settings, and write our own."""
        found, others = self._read(), self._writer.others()
        if found is not None and (found.files or others) and (others or not self.overwrite):
            self._require_settings(
                found, "another process is filling with results" if others else "holds results"
            )
        if not others:
            names = found.files if found is not None else {}
            places = [self.path / MANIFEST, *(one for name in names if (one := self._inside(name)))]
            for folder in {place.parent for place in places}:
                sweep(folder, {place.name for place in places})
        if found is None or self._changed(found):
            found = _Manifest(dict(self.settings))
        for key, values in self._described.items():
            there = found.settings.get(key)
            found.settings[key] = {**(there if isinstance(there, dict) else {}), **values}
        self._manifest = found
        found.write(self.path / MANIFEST)

    def _changed(self, found: _Manifest) -> list[str]:
        """Return the settings that differ."""
        keys = sorted((found.settings.keys() | self.settings.keys()) - self._described.keys())
        return [key for key in keys if found.settings.get(key) != self.settings.get(key)]

    def _require_settings(self, found: _Manifest, what: str) -> None:
        changed = self._changed(found)
        if changed:
            then, now = found.settings, self.settings
            details = "; ".join(f"{k}: {then.get(k)!r}, now {now.get(k)!r}" for k in changed)
            raise ConfigError(
                f"{self.path}: expected a folder of these settings, got one that {what} of other settings ({details}); "
                "choose another --output-dir, or replace them with --overwrite."
            )

    def _read(self) -> _Manifest | None:
        """Return the manifest; None without one, or for a damaged one to be overwritten."""
        try:
            return _Manifest.read(self.path / MANIFEST)
        except DataError:
            if self.overwrite:
                return None
            raise


def _plain(value: Any) -> Any:
    """Return plain values as JSON reads them back: tuples become lists, NaN becomes None."""
    return json.loads(json.dumps(without_nan(value)))


def _content(inputs: Inputs, key: str) -> str | None:
    return inputs.get(key, {}).get("sha256")


def inputs_of(files: Mapping[str, Path]) -> Inputs:
    """Return path and content hash of ``files`` by name; raises DataError for one that cannot be read."""
    from prod9.files import sha256

    found: dict[str, dict[str, str]] = {}
    for name, path in files.items():
        try:
            found[name] = {"path": str(path.absolute()), "sha256": sha256(path)}
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions."
            ) from error
    return found


def digest_of(*arrays: Any) -> str:
    """Return one SHA-256 of the types, shapes and values of numpy arrays; None stands for a missing array."""
    import numpy as np

    digest = hashlib.sha256()
    for array in arrays:
        plain = None if array is None else np.ascontiguousarray(array)
        digest.update(b"none" if plain is None else f"{plain.dtype}{plain.shape}".encode())
        digest.update(b"" if plain is None else plain.tobytes())
    return digest.hexdigest()


def require_distinct(results: Iterable[tuple[str, object]]) -> None:
    """Refuse (ConfigError) two results of one name, before any is made. results: name, and what it is made from."""
    seen: dict[str, object] = {}
    for name, source in results:
        if name in seen:
            raise ConfigError(
                f"{seen[name]} and {source} would both become {name}; give one at a time, each its own --output-dir."
            )
        seen[name] = source


def report_made(
    folder: OutputFolder,
    made: list[str],
    as_json: bool,
    *,
    total: int,
    noun: str = "volume",
    scored_by: Sequence[str] = (),
) -> None:
    """Print how many of the results were made and kept, where they are, and the command that scores them.

    Args:
        folder: of the results.
        made: names of those that this command made.
        as_json: as the option.
        total: number of all results.
        noun: what they are.
        scored_by: ``prod9 evaluate`` and its words up to the folder of the results; nothing for none.
    """
    result = {"output_dir": str(folder.path), "made": made, "kept": total - len(made)}
    if as_json:
        print_json(result)
    else:
        console.print(f"{plural(made, noun)} made, {result['kept']} kept, in {folder.path}")
        if scored_by:
            tell_next(*scored_by, folder.path, "-o", f"{folder.path}_scores", note="against real scans")
