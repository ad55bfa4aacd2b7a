"""Measure what `prod9 finetune` brings on scans of another scanner, and write the table of docs/how-to/fine-tune.md.

    python docs/tools/finetune_table.py FOLDER [--write]

FOLDER gets a simulated cohort as the packaged weights have not seen it: other patients, another contrast, thicker
slices, more noise and a stronger bias field. The model is fine-tuned on some patients and scored on the others beside
the packaged one: by PSNR in the brain after the best affine map of intensities. Times are CPU time of one thread. Kept
runs are used again.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

import prod9
from prod9.data.layouts.find import find_cases
from prod9.data.simulated.cohort import simulate_cohort
from prod9.evaluation.sets.intervals import mean_interval
from prod9.measures.metrics import fit_intensities, foreground, psnr
from prod9.pipelines.placement import GridPlacement
from prod9.volumes import read, write

PAGE = Path(__file__).parents[1] / "how-to" / "fine-tune.md"
MODEL = "demo/translate"
TUNED, TESTED = 6, 8
"""Patients that are trained on (one of them for validation), and patients that are scored."""
SEED = 900
GAMMA = {"t1n": 0.7, "t1c": 1.4, "t2w": 1.4, "t2f": 0.7}
"""Contrast of the other scanner: no affine map of intensities undoes a power."""
THICKNESS = 0.6
"""Blur between slices, standard deviation in voxels."""
BIAS = 0.4
"""The field multiplies intensities by exp of a linear function of place that reaches this at the corners."""
NOISE = 0.05
"""Of Rice's distribution, over the brightest intensity."""
ROW = "| {name} | {before} | {after} | {gain} |"


def other_scanner(volume: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Return a skull-stripped scan ``[H W D]`` as the other scanner takes it; the background stays 0.

    kind: suffix of its file, a key of ``GAMMA``.
    """
    inside, top = volume > 0, float(volume.max())
    bent = (volume / top) ** GAMMA[kind]
    # A blur of the tissue alone: that of the mask makes up for the background.
    share = gaussian_filter1d(inside.astype(np.float64), THICKNESS, axis=2)
    blurred = gaussian_filter1d(bent, THICKNESS, axis=2) / np.maximum(share, 1e-3)
    places = np.meshgrid(*(np.linspace(-1, 1, side) for side in volume.shape), indexing="ij")
    slopes = rng.uniform(-1, 1, 3)
    field = np.exp(BIAS * sum(s * p for s, p in zip(slopes / np.abs(slopes).sum(), places, strict=True)))
    real, imaginary = NOISE * rng.standard_normal((2, *volume.shape))
    return np.where(inside, np.maximum(top * np.hypot(blurred * field + real, imaginary), 1e-3 * top), 0.0)


def make_cohorts(folder: Path) -> tuple[Path, Path]:
    """Return the folders of the patients to train on and of those to score, made if missing."""
    parts = folder / "tune", folder / "test"
    if not all(part.is_dir() for part in parts):
        cohort = simulate_cohort(folder / "plain", num_subjects=TUNED + TESTED, spacing_mm=3.75, seed=SEED)
        for number, subject in enumerate(cohort.subjects):
            place = parts[number >= TUNED] / subject.case_id
            place.mkdir(parents=True, exist_ok=True)
            for path in sorted((cohort.root / subject.case_id).glob("*.nii.gz")):
                file, kind = read(path), path.name.removesuffix(".nii.gz").rpartition("-")[2]
                rng = np.random.default_rng([SEED, number, *kind.encode()])
                made = other_scanner(file.data, kind, rng) if kind in GAMMA else file.data
                write(place / path.name, made, file.header, dtype=np.float32 if kind in GAMMA else np.uint8)
    return parts


def fine_tune(data: Path, folder: Path) -> float:
    """Fine-tune the model on ``data`` into ``folder`` and return the minutes of CPU time; kept runs are not redone."""
    record = folder.with_suffix(".json")
    if not record.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "prod9", "finetune", "-m", MODEL, "-d", str(data), "-o", str(folder)]
        subprocess.run([*command, "--device", "cpu"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        record.write_text(json.dumps({"cpu_minutes": seconds / 60}), encoding="utf-8")
    return float(json.loads(record.read_text(encoding="utf-8"))["cpu_minutes"])


def patients(data: Path, placement: GridPlacement, names: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Return the scans of each patient on the model's grid, in [0, 1]."""
    found = []
    for case in find_cases(data, modalities=names):
        found.append(placement.place({name: read(case.images[name]) for name in names}).images)
    return found


def translation_scores(model: str, data: Path) -> dict[str, Tensor]:
    """Return the PSNR of each patient ``[N]`` by target, each made from the three other modalities."""
    loaded = prod9.load(model, device="cpu")
    names, pipeline = loaded.labels, loaded.pipeline
    held_out = patients(data, pipeline.placement, names)
    scores = {}
    for target in names:
        made = [
            pipeline.translate(
                {name: one[name] for name in names if name != target}, target, decode="mean"
            ).mean
            for one in held_out
        ]
        scores[target] = fitted(made, [one[target] for one in held_out])
    return scores


def fitted(made: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> Tensor:
    """Return the PSNR in the brain of each volume after the best affine map of its intensities, in dB."""
    volumes, targets = (torch.from_numpy(np.stack(one))[:, None].float() for one in (made, true))
    brain = foreground(targets)
    return psnr(fit_intensities(volumes, targets, mask=brain), targets, mask=brain)


def with_interval(values: Tensor, sign: str = "") -> str:
    """Return the mean over patients and its 95% interval as text."""
    low, high = mean_interval(values, replicates=200, seed=0) or (float("nan"), float("nan"))
    return f"{values.mean().item():{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def rows(before: dict[str, Tensor], after: dict[str, Tensor]) -> Iterator[str]:
    """Yield a row of each modality."""
    for name, values in before.items():
        yield ROW.format(
            name=name,
            before=with_interval(values),
            after=with_interval(after[name]),
            gain=with_interval(after[name] - values, "+"),
        )


def table(minutes: float, lines: Sequence[str], *, tuned: int, tested: int) -> str:
    """Return the table with its heading, as the page shows it."""
    head = (
        f"`{MODEL}`, fine-tuned on {tuned} patients (one of them for validation) in {minutes:.0f} minutes of CPU time, "
        f"one thread, and scored on {tested} others:"
    )
    return "\n".join([head, "", "| PSNR in dB | packaged | fine-tuned | gain |", "|---|---|---|---|", *lines])


def replace_between(page: Path, name: str, text: str) -> None:
    """Put ``text`` between the marks ``name`` of ``page``."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page}: expected the marks {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tune", type=Path, help="patients to train on instead of simulated ones")
    parser.add_argument("--test", type=Path, help="patients to score")
    parser.add_argument("--write", action="store_true", help="write the page")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tune, test = (args.tune, args.test) if args.tune else make_cohorts(args.folder)
    run = args.folder / MODEL.replace("/", "_")
    minutes = fine_tune(tune, run)
    before, after = translation_scores(MODEL, test), translation_scores(str(run), test)
    count = len(find_cases(tune, modalities=tuple(before)))
    lines = list(rows(before, after))
    text = table(minutes, lines, tuned=count, tested=len(next(iter(before.values()))))
    if args.write:
        replace_between(PAGE, f"fine-tuning of {MODEL}", text)
    print(text)


if __name__ == "__main__":
    main()
