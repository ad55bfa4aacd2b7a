"""``part.json``: what a part of a work is to make, so that joining the parts finds gaps and different settings."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prod9.errors import ConfigError, DataError
from prod9.files import inside
from prod9.json_files import read_object, write_json
from prod9.system.parts import WorkPart, part_folders

RECORD = "part.json"
RESULTS, STORE, FEATURES, CASES = "results", "store", "features", "cases"
"""Kinds of work: volumes with a manifest, a store of encoded volumes, features of volumes, and preprocessed cases."""


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What one part is to make.

    Attributes:
        part: which, as ``2/4``.
        kind: of the work.
        settings: plain values that decide what is made.
        total: number of results of all parts.
        plan: hash of the names of the results of all parts.
        names: of the results of this part.
        described: more of the manifest, which is not compared.
    """

    part: str
    kind: str
    settings: dict[str, Any]
    total: int
    plan: str
    names: list[str]
    described: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "PartRecord":
        """Return the record in ``folder``; DataError where it is missing or something else."""
        path, remedy = folder / RECORD, "run that part again"
        content = read_object(path, "the record of a part", remedy=remedy)
        try:
            record = cls(**content)
            for name in record.names:
                inside(folder, name)
        except (TypeError, AttributeError) as error:
            raise DataError(f"{path}: expected the record of a part, got other fields; {remedy}.") from error
        plain = isinstance(record.settings, dict) and isinstance(record.described, dict)
        if (
            not plain
            or not isinstance(record.total, int)
            or record.kind not in (RESULTS, STORE, FEATURES, CASES)
        ):
            raise DataError(f"{path}: expected the record of a part, got other values; {remedy}.")
        return record

    def write(self, folder: Path) -> None:
        """Write it into ``folder``, atomically."""
        write_json(folder / RECORD, asdict(self))


def plan_of(names: Iterable[str]) -> str:
    """Return a hash of the names of all results, whatever their order."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def require_same_count(directory: Path, part: WorkPart) -> None:
    """Refuse (ConfigError) a part of N where there are parts of another number: together they would overlap."""
    others = sorted({found.count for found in part_folders(directory)} - {part.count})
    if others and not part.is_all:
        raise ConfigError(
            f"--part: expected parts of {others[0]} as in {directory}, got {part}; give --part I/{others[0]} (a task "
            "that is started again alone needs it too), or choose another folder"
        )


def read_parts(directory: Path) -> dict[WorkPart, tuple[Path, PartRecord]]:
    """Return the folder and the record of every part in ``directory``, which belong together and are complete.

    Raises DataError when there are none, when one is missing or when names of results overlap, ConfigError when the
    settings or the amounts differ; the message names what differs.
    """
    folders = part_folders(directory)
    if not folders:
        raise DataError(
            f"{directory}: expected folders of parts such as part-1-of-4, got none; name the --output-dir of a "
            "command that ran with --part, or the store of `prod9 encode --part`."
        )
    count = max(part.count for part in folders)
    mixed = sorted({part.count for part in folders})
    if len(mixed) > 1:
        raise ConfigError(
            f"{directory}: expected parts of one number, got parts of {' and of '.join(map(str, mixed))}; delete "
            "those that do not belong to this work"
        )
    lacking = [str(part) for part in (WorkPart(k, count) for k in range(1, count + 1)) if part not in folders]
    lacking += [
        str(part)
        for part, folder in folders.items()
        if part.number <= count and not (folder / RECORD).is_file()
    ]
    if lacking:
        raise DataError(
            f"{directory}: expected all {count} parts, got none of {', '.join(lacking)}; run the same command with "
            f"--part {lacking[0]}."
        )
    records = {part: (folder, PartRecord.read(folder)) for part, folder in folders.items()}
    _require_one_work(records)
    return records


def _require_one_work(records: Mapping[WorkPart, tuple[Path, PartRecord]]) -> None:
    (first_part, (_, first)), *others = records.items()
    for _, (folder, record) in others:
        for name in sorted(_flat(first.settings).items() ^ _flat(record.settings).items()):
            key = name[0]
            there, here = (_flat(one.settings).get(key, "nothing") for one in (first, record))
            raise ConfigError(
                f"{folder}: expected a part with the settings of part {first_part}, got {key}: {here}, there "
                f"{there}; run one of them again with --overwrite and the settings of the other"
            )
        if (record.kind, record.total, record.plan) != (first.kind, first.total, first.plan):
            raise ConfigError(
                f"{folder}: expected a part of the same {first.total} results as part {first_part}, got one of "
                f"{record.total} or of other names; run all parts with the same number of samples, labels and inputs"
            )
    seen: dict[str, WorkPart] = {}
    for part, (_, record) in records.items():
        for name in record.names:
            if name in seen:
                raise DataError(
                    f"{name}: expected a result of one part, got it in part {seen[name]} and part {part}; run both "
                    "again in an empty folder."
                )
            seen[name] = part
    if plan_of(seen) != first.plan:
        raise DataError(
            f"expected {first.total} results in all parts together, got {len(seen)}; run all parts with the same "
            "command."
        )


def _flat(settings: Mapping[str, Any], start: str = "") -> dict[str, str]:
    """Return nested settings as text by dotted key."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{start}{name}.")
        else:
            flat[start + name] = repr(value)
    return flat


def describe_gap(part: WorkPart, folder: Path, missing: Sequence[str], total: int) -> DataError:
    """Return the error of a part that lacks results."""
    return DataError(
        f"{folder}: expected all {total} results of part {part}, got {total - len(missing)} ({missing[0]} is "
        f"missing); it still runs, or stopped: run the same command with --part {part} again."
    )
