"""The jobs of a ``prod9 generate translate`` command line; nothing here imports torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prod9.cli.generate.inputs import named_files
from prod9.cli.naming import known_as, spelt
from prod9.errors import ConfigError, DataError
from prod9.files import inside
from prod9.system.machine import expand

if TYPE_CHECKING:
    from prod9.data.cases import Case
    from prod9.volumes import Channel, VolumeFile

SUFFIXES = (".nii.gz", ".nii")
# Modality → its name in files of BraTS since 2023, and before.
_WORDS = {"T1": ("t1n", "t1"), "T1ce": ("t1c", "t1ce"), "T2": ("t2w", "t2"), "FLAIR": ("t2f", "flair")}
_NEW_NAMES = ("brats2023", "brats2024")


@dataclass(frozen=True, eq=False)
class Job:
    """One translation.

    Attributes:
        name: of the patient, for messages.
        sources: modality → file and place in it.
        target: modality to make.
        output: path of the result, relative to the output folder where there is one.
    """

    name: str
    sources: "Mapping[str, tuple[Path, Channel | None]]"
    target: str
    output: Path

    @property
    def files(self) -> dict[str, Path]:
        """Modality → file."""
        return {name: path for name, (path, _) in self.sources.items()}

    def __str__(self) -> str:
        """Return where its sources are, for messages."""
        return ", ".join(str(path) for path in self.files.values()) or self.name

    def spelt(self, known: Sequence[str]) -> "Job":
        """Return the same job in the spelling of ``known``, the modalities of the model."""
        return replace(
            self, sources=spelt("--source", self.sources, known), target=known_as(self.target, known)
        )

    def results(self, num_samples: int) -> dict[str, Path]:
        """Return what is written: ``result`` and, for several samples, ``uncertainty`` and each of them."""
        if num_samples == 1:
            return {"result": self.output}
        names = {"result": self.output, "uncertainty": _beside(self.output, "uncertainty")}
        return names | {f"sample {k}": _beside(self.output, f"{k:04d}") for k in range(num_samples)}


def job_from_sources(sources: Sequence[str], target: str | None, output: Path | None) -> Job:
    """Return the job of ``--source NAME=FILE …``; raises ConfigError for what is missing or ambiguous."""
    if target is None or output is None:
        missing = "--target NAME" if target is None else "--output FILE"
        raise ConfigError(f"expected {missing} with --source, got none; add it")
    if not output.name.lower().endswith(SUFFIXES):
        raise ConfigError(f"--output: expected a name ending in .nii or .nii.gz, got {output}")
    files = named_files(sources)
    if expand(output).resolve() in {path.resolve() for path in files.values()}:
        raise ConfigError(f"--output: {output} is one of the sources; choose another name")
    return Job(output.name, {name: (path, None) for name, path in files.items()}, target, expand(output))


def jobs_of_cases(
    cases: "Sequence[Case]", target: str | None, known: Sequence[str]
) -> tuple[list[Job], list[str]]:
    """Return a job for every modality that a patient lacks, and the names of those who lack none.

    Raises ConfigError when nothing is left to do.

    Args:
        cases: the patients.
        target: make this one instead, also where it exists; it is then left out of the sources.
        known: the model's modalities.
    """
    jobs: list[Job] = []
    complete: list[str] = []
    for case in cases:
        there = {name: (path, case.channels.get(name)) for name, path in case.images.items() if name in known}
        targets = [target] if target is not None else [name for name in known if name not in there]
        if not targets:
            complete.append(case.case_id)
        for wanted in targets:
            sources = {name: file for name, file in there.items() if name != wanted}
            jobs.append(Job(case.case_id, sources, wanted, _output(case, wanted)))
    if not jobs:
        raise ConfigError(
            f"expected a patient that lacks one of {', '.join(known)}, got {len(complete)} complete; "
            "name what to make again with --target."
        )
    return jobs, complete


def find_patients(folders: "Sequence[Path]") -> "list[Case]":
    """Return the cases below ``folders``, complete or not; DataError where there is none or one is unclear."""
    from prod9.data.layouts.find import no_cases, scan_dataset

    cases: list[Case] = []
    for folder in folders:
        dataset = scan_dataset(expand(folder))
        if dataset.problems:
            raise DataError(dataset.problems[0])
        if not dataset.cases:
            raise DataError(no_cases(folder))
        cases += dataset.cases
    return cases


def read_job(sources: "Mapping[str, tuple[Path, Channel | None]]") -> "dict[str, VolumeFile]":
    """Read the files of a job; raises DataError."""
    from prod9.volumes import read_channels

    return {name: read_channels(path, [place])[place] for name, (path, place) in sources.items()}


def _output(case: "Case", target: str) -> Path:
    new, old = _WORDS.get(target, (target, target))
    joint, word = ("-", new) if case.layout in _NEW_NAMES else ("_", old)
    name = f"{case.case_id}/{case.case_id}{joint}{word}.nii.gz"
    inside("--output-dir", name)  # the name of a case may come from a list
    return Path(name)


def _beside(path: Path, word: str) -> Path:
    suffix = next(ending for ending in SUFFIXES if path.name.lower().endswith(ending))
    return path.with_name(f"{path.name[: -len(suffix)]}_{word}{path.name[-len(suffix) :]}")
