"""The steps of ``prod9 augment`` after the patients are made; each is done once and noted."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prod9.cli.judge.reporting import reporting
from prod9.data.formats.form import Form
from prod9.errors import DataError
from prod9.system.wording import plural

MADE, ACCEPTED, AUDIT, DATASET, UTILITY = "made", "accepted", "audit", "dataset", "utility"
"""Folders in the output folder."""
CARD, REPORT, STATE = "DATA_CARD.md", "report.html", "augment.json"


@dataclass(frozen=True)
class Asked:
    """What the steps work on.

    Attributes:
        real: folder of the real patients.
        split: the split.json of the models.
        model: the label-conditional model.
        output: where everything goes.
        form: of the data set.
        folds: of nnU-Net.
        seed: of the folds.
        false_alarms: share of honest volumes that the audit may call suspect.
    """

    real: Path
    split: Path
    model: str
    output: Path
    form: Form
    folds: int
    seed: int
    false_alarms: float


class Notes:
    """Which steps are done, and with what: a step of the same key is not done again."""

    def __init__(self, folder: Path) -> None:
        from prod9.json_files import read_object

        self._path = folder / STATE
        self._done: dict[str, Any] = {}
        if self._path.is_file():
            self._done = read_object(self._path, "notes of prod9 augment", remedy="delete the file")

    def is_done(self, step: str, key: Any) -> bool:
        """Return whether ``step`` was finished with the same ``key``, a plain value."""
        return step in self._done and self._done[step] == json.loads(json.dumps(key))

    def finish(self, step: str, key: Any) -> None:
        """Note that ``step`` is finished."""
        from prod9.json_files import write_json

        self._done[step] = key
        write_json(self._path, self._done)


def state_of(real: Path) -> str:
    """Return a digest of the files of the real patients: names, sizes and times of change, without reading them."""
    from prod9.data.formats.convert import read_cases

    cases, _ = read_cases(real)
    files = {path for case in cases for path in (*case.images.values(), case.seg) if path is not None}
    found = [(os.path.relpath(path, real), path.stat()) for path in sorted(files)]
    told = [f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in found]
    return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()


def audit_made(asked: Asked, notes: Notes, key: Any, device: Any) -> dict[str, Any]:
    """Audit the made patients against training and held-out ones, and return the content of audit.json."""
    from prod9.json_files import read_object

    folder = asked.output / AUDIT
    if not notes.is_done(AUDIT, key):
        from prod9.evaluation.audit.embeddings import VoxelEmbedding, load_latents
        from prod9.evaluation.audit.sets import sets_of_split
        from prod9.evaluation.audit.volumes import readable, run_audit
        from prod9.evaluation.sets.volume_sets import BadFiles

        bad = BadFiles(skip=False)
        made = asked.output / MADE
        sets = sets_of_split(asked.split, asked.real, made, bad=bad)
        with reporting() as report:
            voxels = VoxelEmbedding.fit(readable(sets.train, bad))
            embeddings = [voxels, load_latents(asked.model, device=device)]
            result = run_audit(
                sets,
                embeddings,
                false_alarms=asked.false_alarms,
                max_share=asked.false_alarms,
                bad=bad,
                progress=lambda done, total: report("Auditing", done, total),
            )
        result.write(folder, voxels)
        notes.finish(AUDIT, key)
    return read_object(folder / "audit.json")


def suspects_of(audit: dict[str, Any], cases: Sequence[str]) -> list[str]:
    """Return the cases of which a volume is suspect; DataError where that leaves none."""
    files = [pair["generated"] for pair in audit["pairs"] if pair["suspect"]]
    found = sorted({name for name in cases for file in files if name in Path(file).parts})
    if len(found) == len(cases):
        raise DataError(
            f"expected a patient that is no suspect, got {len(found)} suspects of {len(cases)}: the models copy their "
            "training patients; train them on more patients, or shorter."
        )
    return found


def write_sets(
    asked: Asked, notes: Notes, key: Any, names: Sequence[str], suspects: Sequence[str], card: str
) -> dict[str, int]:
    """Write the accepted patients, and the data set with the real ones; return the counts of the latter.

    Args:
        asked: what is worked on.
        notes: of the steps that are done.
        key: of this step.
        names: of the patients that were asked for.
        suspects: names of those that are thrown out.
        card: page that goes beside the patients.
    """
    from prod9.data.formats.brats import BRATS
    from prod9.data.formats.convert import carry_out, plan_work, read_cases
    from prod9.data.splits import Split

    made, _ = read_cases(asked.output / MADE)
    wanted = {*names} - {*suspects}
    kept = [case for case in made if case.case_id in wanted]
    modalities = list(kept[0].images)
    real, _ = read_cases(asked.real, modalities=modalities)
    is_nnunet = asked.form.name == "nnunet"
    work = plan_work(
        asked.form,
        [] if asked.form.name == "bids" else real,
        kept,
        folds=asked.folds,
        seed=asked.seed,
        test_patients=Split.load(asked.split).test if is_nnunet else (),
    )
    if not notes.is_done(DATASET, key):
        about = {"text": "Made by prod9 augment; DATA_CARD.md says how.", "suspects": list(suspects)}
        for folder, planned in ((ACCEPTED, plan_work(BRATS, [], kept)), (DATASET, work)):
            shutil.rmtree(asked.output / folder, ignore_errors=True)  # of another number of patients
            with reporting() as report:
                carry_out(
                    planned,
                    asked.output / folder,
                    about=about,
                    card=card,
                    progress=lambda done, total, what=folder: report(f"Writing {what}", done, total),
                )
        notes.finish(DATASET, key)
    return {
        "real": len(work.cases) - len(kept) - len(work.tested) if asked.form.name != "bids" else 0,
        "synthetic": len(kept),
        "tested": len(work.tested),
        "folds": len(work.splits),
    }


def measure(asked: Asked, notes: Notes, key: Any, *, steps: int, seeds: int, device: Any) -> dict[str, Any]:
    """Train segmenters on real, accepted and both patients, and return the content of evaluation.json."""
    from prod9.json_files import read_object

    folder, key = asked.output / UTILITY, [key, steps, seeds]
    if not notes.is_done(UTILITY, key):
        from prod9.evaluation.judges.kept_overlaps import FILE as KEPT
        from prod9.evaluation.utility import UtilitySettings, evaluate_utility

        modalities, spacing = _made_as(asked.output / ACCEPTED)
        settings = UtilitySettings(
            split=str(asked.split), steps=steps, seeds=seeds, modalities=modalities, spacing=spacing
        )
        with reporting() as report:
            result = evaluate_utility(
                asked.real,
                asked.output / ACCEPTED,
                settings,
                device=device,
                report=report,
                keep=folder / KEPT,
            )
        folder.mkdir(parents=True, exist_ok=True)
        result.write(folder)
        notes.finish(UTILITY, key)
        (folder / KEPT).unlink(missing_ok=True)
    return read_object(folder / "evaluation.json")


def _made_as(folder: Path) -> tuple[tuple[str, ...], tuple[float, float, float]]:
    """Return modalities and voxel size in mm of the patients in ``folder``; real ones are brought to that size."""
    from prod9.data.formats.convert import read_cases
    from prod9.volumes import read_header

    first = read_cases(folder)[0][0]
    return tuple(first.images), read_header(next(iter(first.images.values()))).ras_spacing


def data_card(asked: Asked, masks: int, made: int, audit: dict[str, Any], suspects: Sequence[str]) -> str:
    """Return the page that says what the synthetic patients are, and what the audit found."""
    lines = [
        "# SYNTHETIC brain scans",
        "",
        "The patients whose names begin with BraTS-SYN do not exist: prod9 made them. Their scans reproduce whatever",
        "the models learnt, mistakes included, and support no statement about patients. Their segmentations are what",
        "the models were asked for, not what somebody found in the scans.",
        "",
        f"- Made: {plural(made, 'patient')}, following {plural(masks, 'segmentation')}, with {asked.model}.",
        f"- Audit: {len(suspects)} of them resemble a training patient more than a held-out patient would in "
        f"{1 - asked.false_alarms:.0%} of the cases, and were thrown out.",
        *(f"  - {name}" for name in suspects),
    ]
    for row in audit["embeddings"]:
        lines.append(
            f"- {row['name']}: relative distance {row['median_generated']:.2f}, of held-out patients "
            f"{row['median_held_out']:.2f}; suspect below {row['threshold']:.2f}."
        )
    lines += [
        "- The models have seen the training patients. A score on these patients, as nnU-Net's folds give it, is",
        "  therefore too good where synthetic patients train; only the test patients were seen by no model.",
    ]
    return "\n".join(lines) + "\n"


def make_report(asked: Asked) -> Path | None:
    """Write the report of the model with the made patients, the audit and the measurement; None for no run."""
    from prod9.evaluation.report.page import Sources, write_report

    run = Path(asked.model)
    if not (run / "run.json").is_file():
        return None
    include = [asked.output / name for name in (AUDIT, UTILITY) if (asked.output / name).is_dir()]
    return write_report(run, asked.output / REPORT, Sources(asked.output / ACCEPTED, include))


def scores_of(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the Dice of each region by the set that was trained on, with its interval."""
    wanted = ("region", "trained_on", "value", "low", "high")
    return [
        {name: row.get(name) for name in wanted} for row in evaluation["scores"] if row["metric"] == "dice"
    ]
