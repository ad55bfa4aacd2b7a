"""One pass over a set of volumes: each is read once, described by a few rows of numbers, and let go.

A thousand volumes take as much memory as their descriptions: some hundred megabytes at most.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prod9.errors import DataError
from prod9.evaluation.judges.features import SliceExtractor
from prod9.evaluation.sets import appearance
from prod9.evaluation.sets.entries import require_finite
from prod9.evaluation.sets.volume_sets import BadFiles, Entry, Preparation
from prod9.measures.metrics import ms_ssim3d

HISTOGRAM, SPECTRUM, DETAIL = "histogram", "spectrum", "detail"
PROBABILITIES = "probabilities"
AXES = (0, 1, 2)
CPU = torch.device("cpu")

Describe = Callable[[Tensor], Tensor]
"""A volume ``[1 1 H W D]`` → its row ``[1 K]``."""
Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True)
class SetRows:
    """What is kept of a set of ``N`` volumes, in the order of ``entries``.

    rows: name → ``[N K]``. planes: extractor → features of slices along each axis, ``[N S P]``. pairs: MS-SSIM of
    volumes of one modality and two patients, by modality. pair_numbers: which two patients each pair is of; no
    patient is in two such twosomes, so they are independent.
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
        """Return what there is, sorted."""
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
        """Return which twosome each of :meth:`all_pairs` is of; a number of its own where that is not known."""
        if not self.pair_numbers:
            return torch.arange(len(self.all_pairs()))
        return torch.cat([self.pair_numbers[name] for name in self.pairs if name in self.pair_numbers])


@torch.no_grad()
def describe_set(
    entries: Sequence[Entry],
    preparation: Preparation,
    extractors: Sequence[SliceExtractor],
    bad: BadFiles,
    *,
    describe: Mapping[str, Describe] | None = None,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> SetRows:
    """Read each of ``entries`` once and return what is kept of them, volumes of a pair one after the other.

    The order of the entries decides the pairs of the diversity: shuffle them. describe: further rows by name, such
    as class probabilities. What cannot be read goes to ``bad``; DataError when nothing is left.
    """
    kept: list[Entry] = []
    rows: dict[str, list[Tensor]] = {}
    planes: dict[str, list[list[Tensor]]] = {e.name: [[] for _ in AXES] for e in extractors}
    pairs: dict[str, list[Tensor]] = {}
    numbers: dict[str, list[int]] = {}
    twosomes, entries = pair_patients(entries)
    # At most one volume waits: that of the twosome and modality at hand.
    waiting: tuple[tuple[str, int], str, Tensor] | None = None
    for done, entry in enumerate(entries, 1):
        try:
            volume = preparation.read(entry)
            described = _describe(volume, extractors, describe or {}, device)
            slices = {
                extractor.name: [plane.cpu() for plane in extractor.planes(volume.to(device))]
                for extractor in extractors
            }
            require_finite(
                entry.path, [*described.values(), *(plane for own in slices.values() for plane in own)]
            )
        except DataError as error:
            bad.report(entry, error)
            continue
        kept.append(entry)
        for name, row in described.items():
            rows.setdefault(name, []).append(row)
        for name, own in slices.items():
            for axis, plane in enumerate(own):
                planes[name][axis].append(plane)
        if entry.patient_id in twosomes:
            place = entry.modality, twosomes[entry.patient_id]
            if waiting is None or waiting[0] != place:
                waiting = place, entry.patient_id, volume
            elif waiting[1] != entry.patient_id:
                pairs.setdefault(entry.modality, []).append(ms_ssim3d(volume, waiting[2]))
                numbers.setdefault(entry.modality, []).append(place[1])
                # Further volumes of either patient are no other pair.
                waiting = place, entry.patient_id, volume[:0]
        if progress is not None:
            progress(done, len(entries))
    if not kept:
        raise DataError("expected at least one readable volume in each folder, got none in one of them.")
    return SetRows(
        tuple(kept),
        {name: torch.cat(values) for name, values in rows.items()},
        {name: (torch.cat(a), torch.cat(b), torch.cat(c)) for name, (a, b, c) in planes.items()},
        {name: torch.cat(values) for name, values in pairs.items()},
        {name: torch.tensor(values) for name, values in numbers.items()},
    )


def pair_patients(entries: Sequence[Entry]) -> tuple[dict[str, int], list[Entry]]:
    """Return patient → number of its twosome, and the entries with the volumes of a twosome beside each other.

    Each patient is in one twosome at most, with the next patient of the same modalities where there is one, else with
    one that shares some. Entries stay sorted by modality, as these first come.
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
        # The first of a twosome decides where both stand.
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
