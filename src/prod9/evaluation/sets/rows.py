"""One pass over a set of volumes: each is read once, turned into a few rows of numbers, and released.

Only the rows stay in memory: a few hundred megabytes at most for a thousand volumes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from prod9.errors import DataError
from prod9.evaluation.judges.features import SliceExtractor
from prod9.evaluation.sets import appearance
from prod9.evaluation.sets.denoised import Levels, describe_denoised
from prod9.evaluation.sets.entries import require_finite
from prod9.evaluation.sets.kept_rows import Described, KeptRows
from prod9.evaluation.sets.volume_sets import BadFiles, Entry
from prod9.measures.metrics import ms_ssim3d
from prod9.system.parts import ALL, WorkPart
from prod9.system.progress import Progress

HISTOGRAM, SPECTRUM, DETAIL = "histogram", "spectrum", "detail"
PROBABILITIES = "probabilities"
AXES = (0, 1, 2)
CPU = torch.device("cpu")


class Reader(Protocol):
    """Reads the volumes of a set, as a ``Preparation`` does."""

    def read(self, entry: Entry) -> Tensor:
        """Return float32 ``[1 1 H W D]`` in [0, 1]; DataError for a file that cannot be used."""
        ...


Describe = Callable[[Tensor], Tensor]
"""A volume ``[1 1 H W D]`` → its row ``[1 K]``."""


@dataclass(frozen=True)
class SetRows:
    """What is kept of a set of ``N`` volumes, in the order of ``entries``.

    Attributes:
        entries: the volumes.
        rows: name → ``[N K]``.
        planes: extractor → features of slices along each axis, ``[N S P]``.
        pairs: modality → MS-SSIM of volumes of two patients.
        pair_numbers: modality → number of the two patients of each pair. No patient is in two such twosomes, so they
            are independent.
    """

    entries: tuple[Entry, ...]
    rows: Mapping[str, Tensor]
    planes: Mapping[str, tuple[Tensor, Tensor, Tensor]]
    pairs: Mapping[str, Tensor]
    pair_numbers: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self.entries)

    @property
    def modalities(self) -> list[str]:
        """Return the modalities of the set, sorted."""
        return sorted({entry.modality for entry in self.entries})

    def of(self, modality: str) -> "SetRows":
        """Return the volumes of one modality."""
        own = torch.tensor([entry.modality == modality for entry in self.entries])
        return SetRows(
            tuple(entry for entry in self.entries if entry.modality == modality),
            {name: values[own] for name, values in self.rows.items()},
            {name: (a[own], b[own], c[own]) for name, (a, b, c) in self.planes.items()},
            {modality: self.pairs.get(modality, torch.zeros(0))},
            {name: own for name, own in self.pair_numbers.items() if name == modality},
        )

    @property
    def num_patients(self) -> int:
        """Return how many different patients there are."""
        return len({entry.patient_id for entry in self.entries})

    def all_pairs(self) -> Tensor:
        """Return the MS-SSIM of the pairs of all modalities."""
        return torch.cat([torch.zeros(0), *self.pairs.values()])

    def all_pair_numbers(self) -> Tensor:
        """Return the twosome of each of :meth:`all_pairs`; all differ where they are not known."""
        if not self.pair_numbers:
            return torch.arange(len(self.all_pairs()))
        return torch.cat([self.pair_numbers[name] for name in self.pairs if name in self.pair_numbers])


@torch.no_grad()
def describe_set(
    entries: Sequence[Entry],
    preparation: Reader,
    extractors: Sequence[SliceExtractor],
    bad: BadFiles,
    *,
    describe: Mapping[str, Describe] | None = None,
    noise: Levels | None = None,
    device: torch.device = CPU,
    progress: Progress | None = None,
    kept_rows: KeptRows | None = None,
    work: WorkPart = ALL,
) -> SetRows:
    """Read each of ``entries`` once and return what is kept of them, the volumes of a pair one after the other.

    Raises DataError when no volume can be used.

    Args:
        entries: volumes; their order decides the pairs of the diversity, so shuffle them.
        preparation: how they are read.
        extractors: of features.
        bad: notes files that cannot be used.
        describe: functions that make further rows, by name, such as class probabilities.
        noise: also keep rows of the volumes without noise of these levels; by default there are none.
        device: where features are computed.
        progress: called after each volume.
        kept_rows: what was found of the volumes before, and where to keep more.
        work: describe one part of the volumes only, whole twosomes of them.
    """
    kept: list[Entry] = []
    rows: dict[str, list[Tensor]] = {}
    planes: dict[str, list[list[Tensor]]] = {e.name: [[] for _ in AXES] for e in extractors}
    twosomes, entries = pair_patients(entries)
    entries = share_of(work, twosomes, entries)
    pairs = _Pairs(twosomes)

    describer = _Describer(preparation, extractors, describe or {}, noise, device, pairs, kept_rows)
    for done, entry in enumerate(entries, 1):
        pairs.volume = None
        try:
            found = describer(entry)
        except DataError as error:
            bad.report(entry, error)
            continue
        kept.append(entry)
        for name, row in found.rows.items():
            rows.setdefault(name, []).append(row)
        for name, own in found.planes.items():
            for axis, plane in enumerate(own):
                planes[name][axis].append(plane)
        pairs.add(entry, found.pair)
        if progress is not None:
            progress(done, len(entries))
    if not kept:
        raise DataError("expected at least one readable volume in each folder, got none in one of them.")
    return SetRows(
        tuple(kept),
        {name: torch.cat(values) for name, values in rows.items()},
        {name: (torch.cat(a), torch.cat(b), torch.cat(c)) for name, (a, b, c) in planes.items()},
        {name: torch.cat(values) for name, values in pairs.scores.items()},
        {name: torch.tensor(values) for name, values in pairs.numbers.items()},
    )


class _Pairs:
    """MS-SSIM of pairs of volumes; at most one volume waits, that of the twosome and modality at hand.

    Attributes:
        volume: of the entry at hand, where it was read.
    """

    def __init__(self, twosomes: Mapping[str, int]) -> None:
        self.twosomes = twosomes
        self.scores: dict[str, list[Tensor]] = {}
        self.numbers: dict[str, list[int]] = {}
        self.volume: Tensor | None = None
        self._place: tuple[str, int] | None = None
        self._waiting: Entry | None = None
        self._waiting_volume: Tensor | None = None
        self._is_paired = False

    def partner(self, entry: Entry) -> Entry | None:
        """Return the entry that ``entry`` makes a pair with: of the other patient of its twosome, if it waits."""
        if entry.patient_id not in self.twosomes or self._waiting is None or self._is_paired:
            return None
        same = self._place == (entry.modality, self.twosomes[entry.patient_id])
        return self._waiting if same and self._waiting.patient_id != entry.patient_id else None

    def waiting_volume(self, entry: Entry, preparation: Reader) -> Tensor | None:
        """Return the volume of the partner of ``entry``; it is read where its rows were kept from before."""
        partner = self.partner(entry)
        if partner is None:
            return None
        return preparation.read(partner) if self._waiting_volume is None else self._waiting_volume

    def add(self, entry: Entry, score: Tensor | None) -> None:
        """Take the score of ``entry`` with its partner, or let it wait if it is the first of its twosome."""
        if entry.patient_id not in self.twosomes:
            return
        place = entry.modality, self.twosomes[entry.patient_id]
        if self._place != place:
            self._place, self._waiting, self._is_paired = place, entry, False
            self._waiting_volume = self.volume
        elif self.partner(entry) is not None and score is not None:
            self.scores.setdefault(entry.modality, []).append(score)
            self.numbers.setdefault(entry.modality, []).append(place[1])
            # Further volumes of either patient make no other pair.
            self._is_paired, self._waiting_volume = True, None


@dataclass(frozen=True)
class _Describer:
    """Describes volumes, each with its pair if it completes one."""

    preparation: Reader
    extractors: Sequence[SliceExtractor]
    describe: Mapping[str, Describe]
    noise: Levels | None
    device: torch.device
    pairs: _Pairs
    kept_rows: KeptRows | None

    def __call__(self, entry: Entry) -> Described:
        """Return what is kept of one volume; DataError for one that cannot be used."""
        partner = self.pairs.partner(entry)
        there = None if self.kept_rows is None else self.kept_rows.get(entry, partner)
        if there is not None:
            return there
        volume = self.preparation.read(entry)
        rows = _describe(volume, self.extractors, self.describe, self.device)
        if self.noise is not None:
            level = self.noise.get(entry.modality, 0.0)
            rows |= describe_denoised(volume[0, 0], level, self.extractors, self.device)
        planes = {
            extractor.name: [plane.cpu() for plane in extractor.planes(volume.to(self.device))]
            for extractor in self.extractors
        }
        require_finite(entry.path, [*rows.values(), *(plane for own in planes.values() for plane in own)])
        other = self.pairs.waiting_volume(entry, self.preparation)
        found = Described(rows, planes, None if other is None else ms_ssim3d(volume, other))
        self.pairs.volume = volume
        if self.kept_rows is not None:
            self.kept_rows.put(entry, partner, found)
        return found


def share_of(work: WorkPart, twosomes: Mapping[str, int], entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries of one part of the work: twosomes, and patients without one, in turn."""
    places: dict[tuple[str, int | str], int] = {}
    mine = []
    for entry in entries:
        unit = entry.modality, twosomes.get(entry.patient_id, entry.patient_id)
        if work.owns(places.setdefault(unit, len(places))):
            mine.append(entry)
    return mine


def pair_patients(entries: Sequence[Entry]) -> tuple[dict[str, int], list[Entry]]:
    """Return patient → number of its twosome, and the entries with the volumes of a twosome beside each other.

    Each patient is in at most one twosome: with the next patient of the same modalities, or else with one that has some
    of them. Entries are sorted by modality, in the order in which the modalities first occur.
    """
    kinds: dict[str, set[str]] = {}
    for entry in entries:
        kinds.setdefault(entry.patient_id, set()).add(entry.modality)
    twosomes: dict[str, int] = {}
    left = dict(kinds)
    for patient in kinds:
        own = left.pop(patient, None)
        if own is None:
            continue
        other = next((p for p, theirs in left.items() if theirs == own), None)
        other = other or next((p for p, theirs in left.items() if theirs & own), None)
        if other is not None:
            del left[other]
            twosomes[patient] = twosomes[other] = len(twosomes) // 2
    patients = {patient: place for place, patient in enumerate(kinds)}
    modalities = {name: k for k, name in enumerate(dict.fromkeys(entry.modality for entry in entries))}

    def order(entry: Entry) -> tuple[int, int, int]:
        # The first patient of a twosome decides the place of both.
        number = twosomes.get(entry.patient_id)
        first = patients[entry.patient_id] if number is None else firsts[number]
        return modalities[entry.modality], first, patients[entry.patient_id]

    firsts: dict[int, int] = {}
    for patient, number in twosomes.items():
        firsts[number] = min(firsts.get(number, patients[patient]), patients[patient])
    return twosomes, sorted(entries, key=order)


def _describe(
    volume: Tensor,
    extractors: Sequence[SliceExtractor],
    describe: Mapping[str, Describe],
    device: torch.device,
) -> dict[str, Tensor]:
    plain = volume[0, 0]
    on_device = volume.to(device)
    return {
        HISTOGRAM: appearance.histogram(plain)[None],
        SPECTRUM: appearance.power_spectrum(plain)[None],
        DETAIL: appearance.detail(plain)[None],
        appearance.RADIOMICS: appearance.radiomics(plain)[None],
        **{extractor.name: extractor(on_device).cpu() for extractor in extractors},
        **{name: function(on_device).cpu() for name, function in describe.items()},
    }
