"""Folders of results that a command can fill in several runs, and several commands at the same time.

A folder belongs to one model and one set of settings, written into ``manifest.json`` before the first result. The
manifest holds, for each result, hashes of the files that it was made from. A second run keeps a result that is complete
and made from the same content, and makes the others again. Results of other settings are refused, never mixed in.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prod9.cli.front.after import tell_merge, tell_next
from prod9.cli.generate.manifest import MANIFEST as MANIFEST
from prod9.cli.generate.manifest import Inputs as Inputs
from prod9.cli.generate.manifest import Manifest
from prod9.cli.generate.writers import Writer, sweep
from prod9.cli.parts.record import RESULTS, PartRecord, plan_of, require_same_count
from prod9.cli.shared import console, messages, print_json
from prod9.errors import ConfigError, DataError
from prod9.json_files import without_nan
from prod9.system.machine import expand
from prod9.system.parts import ALL, WorkPart
from prod9.system.wording import plural


class OutputFolder:
    """An output folder and its manifest: ``settings`` (what was asked) and ``files`` (what was made).

    Use it as a context manager. Raises DataError when the folder cannot be written, ConfigError when it holds results
    of other settings.

    Args:
        path: the folder; made if missing.
        settings: plain values that decide the content of all files; not ``num_samples`` and the like, and not what
            single files are made from, which goes into their ``inputs``.
        described: more to write beside the settings (name → value by name); added to what is there, not compared.
        overwrite: replace existing results; those of other settings are deleted first.
        part: of the work; one of several has a folder of its own in ``path``, and keeps what is in ``path`` already.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        described: Mapping[str, Mapping[str, Any]] | None = None,
        overwrite: bool = False,
        part: WorkPart = ALL,
    ) -> None:
        from prod9.files import check_writable, exclusive

        root = self.root = expand(path)
        require_same_count(root, part)
        self.path = part.folder(root)
        self.part = part
        self.overwrite = overwrite
        self._record: PartRecord | None = None
        self._all_names: list[str] = []
        self._num_expected = 0
        self.settings: dict[str, Any] = _plain(settings)
        self._described: dict[str, dict[str, Any]] = _plain(described or {})
        self._manifest = Manifest({})
        self._merged = None if part.is_all else self._read_merged(root)
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
        return self.are_done([name], inputs)

    def are_done(self, names: Iterable[str], inputs: Inputs | None = None) -> bool:
        """Return whether :meth:`is_done` holds for all of ``names``, which are made together.

        None is made before all of them were looked at, and the first that has changed is named alone.
        """
        changes = {name: self._changes(name, inputs or {}) for name in names}
        changed = next(((name, keys) for name, keys in changes.items() if keys), None)
        if changed is not None:
            messages.print(f"{changed[0]} is made again, since this has changed: {', '.join(changed[1])}.")
        return all(keys == [] for keys in changes.values())

    def _changes(self, name: str, inputs: Inputs) -> list[str] | None:
        """Return which inputs of a complete result have changed; None where there is none."""
        place = self.place(name)
        if self.overwrite:
            return None
        if self._merged is not None and self._merged.holds(name, inputs):
            return []
        if not place.exists():
            return None
        if name not in self.files:
            raise ConfigError(
                f"{place}: exists, but {MANIFEST} does not say how it was made; move it away, choose "
                "another --output-dir, or replace it with --overwrite."
            )
        if name in self._manifest.pending:
            return None
        now, then = dict(inputs), self._manifest.inputs.get(name, {})
        changed = self._manifest.changed_inputs(name, now)
        for key in changed:
            made_from, given = then.get(key, {}).get("path"), now.get(key, {}).get("path")
            if made_from is not None and given is not None and made_from != given:
                raise ConfigError(
                    f"{place}: was made from {made_from}, and would be replaced by the result of {given}; choose "
                    "another --output-dir, or replace it with --overwrite."
                )
        return changed

    def expect(self, names: Sequence[str], *, of: Sequence[str], count: int | None = None) -> None:
        """Note which files this part of the work is to make, and which ``of`` all parts together.

        `prod9 merge` finds gaps by it. It can be called several times. Nothing is noted for the whole work. count:
        number of results that the files of ``names`` are, for :meth:`num_expected`; by default each is one.
        """
        if self.part.is_all:
            return
        self._all_names += of
        mine = [*(self._record.names if self._record else []), *names]
        self._record = PartRecord(
            part=str(self.part),
            kind=RESULTS,
            settings=self.settings,
            total=len(self._all_names),
            plan=plan_of(self._all_names),
            names=mine,
            described=self._described,
        )
        self._num_expected += len(names) if count is None else count
        self._record.write(self.path)

    def num_expected(self, total: int) -> int:
        """Return how many of ``total`` results this part makes."""
        return total if self._record is None else self._num_expected

    def adopt(self, files: Mapping[str, tuple[Path, Mapping[str, Any], Inputs]]) -> None:
        """Take over finished results. files: name → the file, which is linked or copied, its notes and its inputs."""
        from prod9.files import atomic_write, exclusive, link_or_copy

        with exclusive(self.path):
            manifest = self._manifest
            for name, (_, entry, inputs) in files.items():
                manifest.files[name] = _plain(entry)
                manifest.inputs.pop(name, None)
                if inputs:
                    manifest.inputs[name] = _plain(inputs)
            manifest.pending = sorted({*manifest.pending, *files})
            manifest.write(self.path / MANIFEST)
            for name, (source, _, _) in files.items():
                place = self.place(name)
                place.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(place) as temporary:
                    link_or_copy(source, temporary)
            manifest.pending = sorted({*manifest.pending} - {*files})
            manifest.write(self.path / MANIFEST)

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
            self._remove(() if found is None else found.files)
            found = Manifest(dict(self.settings))
        for key, values in self._described.items():
            there = found.settings.get(key)
            found.settings[key] = {**(there if isinstance(there, dict) else {}), **values}
        self._manifest = found
        found.write(self.path / MANIFEST)

    def _remove(self, names: Iterable[str]) -> None:
        """Delete results of other settings, which are to be replaced: nothing would tell them from ours later."""
        there = [place for name in names if (place := self._inside(name)) is not None and place.is_file()]
        for place in there:
            place.unlink(missing_ok=True)
            with suppress(OSError):  # its folder holds something else
                if place.parent != self.path:
                    place.parent.rmdir()
        if there:
            messages.print(f"{plural(there, 'result')} of other settings removed from {self.path}.")

    def _read_merged(self, root: Path) -> "_Merged | None":
        """Return what is in ``root`` of these settings, made before or merged there; ConfigError for others."""
        found = None if self.overwrite else Manifest.read(root / MANIFEST)
        if found is None or not found.files:
            return None
        self._require_settings(found, "holds results")
        return _Merged(root, found)

    def _changed(self, found: Manifest) -> list[str]:
        """Return the settings that differ."""
        keys = sorted((found.settings.keys() | self.settings.keys()) - self._described.keys())
        return [key for key in keys if found.settings.get(key) != self.settings.get(key)]

    def _require_settings(self, found: Manifest, what: str) -> None:
        changed = self._changed(found)
        if changed:
            then, now = found.settings, self.settings
            details = "; ".join(f"{k}: {then.get(k)!r}, now {now.get(k)!r}" for k in changed)
            raise ConfigError(
                f"{self.path}: expected a folder of these settings, got one that {what} of other settings ({details}); "
                "choose another --output-dir, or replace them with --overwrite."
            )

    def _read(self) -> Manifest | None:
        """Return the manifest; None without one, or for a damaged one to be overwritten."""
        try:
            return Manifest.read(self.path / MANIFEST)
        except DataError:
            if self.overwrite:
                return None
            raise


@dataclass(frozen=True)
class _Merged:
    """What is in the folder that parts are merged into."""

    root: Path
    manifest: Manifest

    def holds(self, name: str, inputs: Inputs) -> bool:
        """Return whether ``name`` is complete there, and made from ``inputs``."""
        there = name in self.manifest.files and name not in self.manifest.pending
        return there and (self.root / name).exists() and not self.manifest.changed_inputs(name, inputs)


def _plain(value: Any) -> Any:
    """Return plain values as JSON reads them back: tuples become lists, NaN becomes None."""
    return json.loads(json.dumps(without_nan(value)))


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
    then: Callable[[Path], Sequence[object]],
    noun: str = "volume",
    note: str = "against real scans",
) -> None:
    """Print how many of the results were made and kept, where they are, and the next command.

    Args:
        folder: of the results.
        made: names of those that this command made.
        as_json: as the option.
        total: number of all results.
        then: returns the words of the next command after ``prod9`` for the folder of the results.
        noun: what they are.
        note: what the next command is for.
    """
    kept = folder.num_expected(total) - len(made)
    result = {"output_dir": str(folder.path), "made": made, "kept": kept}
    if as_json:
        print_json(result)
    else:
        console.print(f"{plural(made, noun)} made, {result['kept']} kept, in {folder.path}")
        if folder.part.is_all:
            tell_next("prod9", *then(folder.path), note=note)
        else:
            tell_merge(folder.root)
