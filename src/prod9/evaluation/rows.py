"""One pass over a set of volumes: each is read once, described by a few rows of numbers, and let go.

A thousand volumes take as much memory as their descriptions: some hundred megabytes at most.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prod9.errors import DataError
from prod9.evaluation import appearance
from prod9.evaluation.features import SliceExtractor
from prod9.evaluation.volume_sets import BadFiles, Entry, Preparation
from prod9.training.metrics import ms_ssim3d

HISTOGRAM, SPECTRUM = "histogram", "spectrum"
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
    volumes 2k and 2k + 1 of each modality, by modality: no volume is in two pairs, so they are independent.
    """

    entries: tuple[Entry, ...]
    rows: Mapping[str, Tensor]
    planes: Mapping[str, tuple[Tensor, Tensor, Tensor]]
    pairs: Mapping[str, Tensor]

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
        )

    def all_pairs(self) -> Tensor:
        """Return the MS-SSIM of the pairs of all modalities."""
        return torch.cat([torch.zeros(0), *self.pairs.values()])


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
    """Read each of ``entries`` once and return what is kept of them.

    The order of the entries decides the pairs of the diversity: shuffle them. describe: further rows by name, such
    as class probabilities. What cannot be read goes to ``bad``; DataError when nothing is left.
    """
    kept: list[Entry] = []
    rows: dict[str, list[Tensor]] = {}
    planes: dict[str, list[list[Tensor]]] = {e.name: [[] for _ in AXES] for e in extractors}
    pairs: dict[str, list[Tensor]] = {}
    waiting: dict[str, Tensor] = {}
    for done, entry in enumerate(entries, 1):
        try:
            volume = preparation.read(entry)
        except DataError as error:
            bad.report(entry, error)
            continue
        kept.append(entry)
        for name, row in _describe(volume, extractors, describe or {}, device).items():
            rows.setdefault(name, []).append(row)
        for extractor in extractors:
            for axis, plane in enumerate(extractor.planes(volume.to(device))):
                planes[extractor.name][axis].append(plane.cpu())
        other = waiting.pop(entry.modality, None)
        if other is None:
            waiting[entry.modality] = volume
        else:
            pairs.setdefault(entry.modality, []).append(ms_ssim3d(volume, other))
        if progress is not None:
            progress(done, len(entries))
    if not kept:
        raise DataError("expected at least one readable volume in each folder, got none in one of them.")
    return SetRows(
        tuple(kept),
        {name: torch.cat(values) for name, values in rows.items()},
        {name: (torch.cat(a), torch.cat(b), torch.cat(c)) for name, (a, b, c) in planes.items()},
        {name: torch.cat(values) for name, values in pairs.items()},
    )


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
        appearance.RADIOMICS: appearance.radiomics(plain)[None],
        **{extractor.name: extractor(on_device).cpu() for extractor in extractors},
        **{name: function(on_device).cpu() for name, function in describe.items()},
    }
