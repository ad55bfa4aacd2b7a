"""Writes the table of docs/explanation/metrics.md: the value of each score under known damage.

    python docs/tools/damage_table.py COHORT --autoencoder RUN [--patients N] [--write docs/explanation/metrics.md]

COHORT is a folder of `prod9 data simulate`. Half of the patients are the real set; the other half is damaged and
judged, so that the sets differ by damage and chance only.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from prod9.evaluation.judges.classifier import train_classifier
from prod9.evaluation.judges.features import (
    AutoencoderFeatures,
    ClassifierFeatures,
    RandomFeatures,
    SliceExtractor,
)
from prod9.evaluation.judges.networks import coarsen
from prod9.evaluation.score_table import Score
from prod9.evaluation.set_scores import Resampling, score_sets
from prod9.evaluation.sets.rows import SetRows, describe_set
from prod9.evaluation.sets.volume_sets import BadFiles, Entry, Preparation, find_volumes, shuffled
from prod9.models.checkpoint_manager import CheckpointManager

BEGIN, END = "<!-- damage table -->", "<!-- end of damage table -->"
MODALITIES = ("T1", "FLAIR")
GRID = (48, 56, 48)
COLUMNS = ("frechet_3d", "frechet_principal", "frechet_2.5d", "kid", "kid_standardised", "coverage")
Damage = Callable[[Tensor], Tensor]


def blur(sigma: float) -> Damage:
    """Return a function that smooths a volume by a Gaussian of ``sigma`` voxels."""
    return lambda volume: torch.from_numpy(gaussian_filter(volume.numpy(), (0, 0, sigma, sigma, sigma)))


def noise(deviation: float) -> Damage:
    """Return a function that adds noise inside the head: different for every volume, the same in every run."""
    generator = torch.Generator().manual_seed(0)

    def damage(volume: Tensor) -> Tensor:
        added = volume + deviation * torch.randn(volume.shape, generator=generator)
        return torch.where(volume > 0, added.clamp(0, 1), 0.0)

    return damage


DAMAGES: dict[str, Callable[[], Damage]] = {
    "none": lambda: lambda volume: volume,
    "blur 0.7": lambda: blur(0.7),
    "blur 1.5": lambda: blur(1.5),
    "noise 0.05": lambda: noise(0.05),
    "noise 0.2": lambda: noise(0.2),
    "collapse to 2 patients": lambda: lambda volume: volume,
}


class Prepared:
    """Takes the place of a Preparation: volumes that were read once, damaged."""

    def __init__(self, volumes: dict[Path, Tensor], damage: Damage) -> None:
        self.volumes = volumes
        self.damage = damage

    def read(self, entry: Entry) -> Tensor:
        """Return the damaged volume of ``entry``."""
        return self.damage(self.volumes[entry.path])


def score_damage(
    judges: Sequence[Entry],
    judged: Sequence[Entry],
    volumes: dict[Path, Tensor],
    extractors: list[SliceExtractor],
) -> dict[str, list[Score]]:
    """Return the scores over all modalities of each kind of damage."""

    def described(entries: Sequence[Entry], damage: Damage) -> SetRows:
        source = Prepared(volumes, damage)
        return describe_set(entries, source, extractors, BadFiles(skip=False))

    real = described(judges, lambda volume: volume)
    names = [extractor.name for extractor in extractors]
    tables = {}
    for name, make in DAMAGES.items():
        entries = _collapsed(judged) if name.startswith("collapse") else judged
        scores = score_sets(described(entries, make()), real, names, Resampling(replicates=0))
        tables[name] = [score for score in scores if score.modality == "all"]
        print(name, flush=True)
    return tables


def _collapsed(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with the volumes of the first two patients in place of all others, under their own names.

    So the output of a generator looks that has learnt two heads.
    """
    result = []
    for modality in MODALITIES:
        own = [entry for entry in entries if entry.modality == modality]
        result += [replace(entry, path=own[k % 2].path) for k, entry in enumerate(own)]
    return shuffled(result, seed=0)


def to_markdown(tables: dict[str, list[Score]], extractors: Sequence[SliceExtractor]) -> str:
    """Return one table per extractor, a row per damage and a column per score; then the scores without extractor."""
    blocks = []
    for extractor in extractors:
        kind = extractor.name.split("-")[0]
        lines = [f"`{kind}` | " + " | ".join(COLUMNS), "|".join(["---"] * (len(COLUMNS) + 1))]
        for name, scores in tables.items():
            own = {score.metric: score for score in scores if score.extractor == extractor.name}
            lines.append(f"{name} | " + " | ".join(_cell(own[column]) for column in COLUMNS))
        blocks.append("\n".join(f"| {line} |" for line in lines))
    metrics = ("radiomic_distance", "spectrum_distance_db", "histogram_distance", "ms_ssim_pairs")
    lines = ["without network | " + " | ".join(metrics), "|".join(["---"] * (len(metrics) + 1))]
    for name, scores in tables.items():
        own = {score.metric: score for score in scores}
        lines.append(f"{name} | " + " | ".join(_cell(own[metric]) for metric in metrics))
    blocks.append("\n".join(f"| {line} |" for line in lines))
    return "\n\n".join(blocks)


def _cell(score: Score) -> str:
    floor = "" if score.floor is None else f" ({score.floor.matched:.3g} : {score.floor.value:.3g})"
    return f"{score.value:.3g}{'' if score.reliable else ' ?'}{floor}"


def main() -> None:
    """Measure, print, and write the table between its marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--autoencoder", required=True)
    parser.add_argument("--patients", type=int, default=48)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    found = find_volumes(args.cohort, modalities=MODALITIES)
    patients = sorted({entry.patient_id for entry in found})[: args.patients]
    entries = [entry for entry in found if entry.patient_id in patients]
    preparation = Preparation(GRID)
    volumes = {entry.path: preparation.read(entry) for entry in entries}
    judges = [entry for entry in entries if entry.patient_id in patients[::2]]
    judged = [entry for entry in entries if entry.patient_id in patients[1::2]]
    network = CheckpointManager.load_autoencoder(args.autoencoder).network.eval().requires_grad_(False)
    classifier = train_classifier(
        torch.cat([coarsen(volumes[entry.path]) for entry in judges]),
        torch.tensor([MODALITIES.index(entry.modality) for entry in judges]),
        num_classes=len(MODALITIES),
        seed=0,
        steps=60,
    )
    extractors: list[SliceExtractor] = [
        RandomFeatures(seed=0),
        AutoencoderFeatures(network),
        ClassifierFeatures(classifier),
    ]
    table = to_markdown(score_damage(judges, judged, volumes, extractors), extractors)
    print(table)
    if args.write:
        before, _, rest = args.write.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        args.write.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
