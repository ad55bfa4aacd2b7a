"""The models that ``prod9 augment`` makes patients with: those that are named, or trained on the patients first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prod9.cli import shared
from prod9.errors import ConfigError
from prod9.system.wording import listing, plural

if TYPE_CHECKING:
    from prod9.data.cases import Case
    from prod9.data.splits import Split

TRAINED = "models"
"""Folder in the output folder, of models that were not named."""
SPLIT = "split.json"
_EMBEDDINGS = 2
"""That the audit compares volumes by: voxels and latents."""


@dataclass(frozen=True)
class Models:
    """What makes patients: names or paths of the models, and the file that divides the patients."""

    label: str
    in_context: str
    control: list[str]
    split: Path


def find_models(
    real: Path,
    output: Path,
    *,
    model: str | None,
    in_context: str | None,
    control: Sequence[str] | None,
    split: Path | None,
    budget: str | None,
    false_alarms: float,
    folds: int,
    seed: int,
    device: str,
) -> Models:
    """Return the models that are named, with their split; where none is named, train them on ``real`` first.

    Whether enough patients are held out for the audit is checked before anything is trained or made.

    Args:
        real: folder of the real patients.
        output: folder of all results.
        model: the label-conditional model, or None for models that are trained here.
        in_context: the model that translates.
        control: control networks.
        split: the file of the split, if it is named.
        budget: time that training may take, as text.
        false_alarms: share of honest volumes that the audit may call suspect.
        folds: of nnU-Net; 0 for none.
        seed: of the split and of training.
        device: where to train.
    """
    given = {"--model": model, "--in-context": in_context, "--control": control}
    lacking = [name for name, value in given.items() if not value]
    if lacking and len(lacking) < len(given):
        raise ConfigError(
            f"{lacking[0]}: expected it together with {listing([name for name in given if name not in lacking])}, got "
            "none; name it too, or none of them, so that all are trained on the patients first"
        )
    from prod9.data.formats.convert import read_cases

    cases, _ = read_cases(real)
    if model is None or in_context is None:
        if split is not None:
            raise ConfigError(
                "--split: expected it with --model, whose patients it divides, got it without; leave it out"
            )
        from prod9.training.patient_models import share_of_test

        tested, patients = _least_tested(cases, false_alarms), len({case.patient_id for case in cases})
        share_of_test(real, patients, tested)
        _require_folds(patients - tested, folds)
        return _trained(real, output, cases, budget=budget, tested=tested, seed=seed, device=device)
    if budget is not None:
        raise ConfigError("--budget: expected it without --model, got both; leave one out")
    file = split or _split_of(model, output)
    from prod9.data.splits import Split

    if not file.is_file():
        raise ConfigError(
            f"--split {file}: expected a split file, got none; a run keeps it as {SPLIT}: it says which patients were "
            "trained on"
        )
    found = Split.load(file)
    _require_tested(found, cases, false_alarms, file)
    _require_folds(len({case.patient_id for case in cases} - set(found.test)), folds)
    return Models(model, in_context, list(control or []), file)


def _trained(
    real: Path,
    output: Path,
    cases: "Sequence[Case]",
    *,
    budget: str | None,
    tested: int,
    seed: int,
    device: str,
) -> Models:
    """Train the models that make patients into ``output``, or go on where that was interrupted.

    Args:
        real: folder of the real patients.
        output: folder of all results.
        cases: those in ``real``.
        budget: time that training may take, as text.
        tested: patients that the audit needs for the test.
        seed: of the split and of training.
        device: where to train.
    """
    from prod9.demo.plan import parse_minutes
    from prod9.devices import torch_device
    from prod9.training.finetuning import train_stages
    from prod9.training.patient_models import MINUTES, PatientModels, plan_patient_models

    if not any(case.seg is not None for case in cases):
        raise ConfigError(f"{real}: expected patients with segmentations to train on, got none; add them")
    models = PatientModels(output / TRAINED)
    patients = {case.patient_id for case in cases}
    steps = plan_patient_models(
        real,
        models.folder,
        num_patients=len(patients),
        least_tested=tested,
        factor=1.0 if budget is None else parse_minutes(budget) / MINUTES,
        seed=seed,
    )
    shared.messages.print(f"Models of {plural(patients, 'patient')}, into {models.folder}.")
    train_stages(steps, say=shared.messages.print, device=str(torch_device(device)))
    return Models(str(models.label), str(models.in_context), [str(models.control)], models.split)


def _split_of(model: str, output: Path) -> Path:
    """Return the file that divides the patients of ``model``: that of a run, or one with what its header says."""
    from prod9.models.named.find import require_model
    from prod9.models.named.packaged import packaged_at

    place = require_model(model)
    if packaged_at(place) is not None:
        raise ConfigError(
            f"--model: expected a model that was trained on these patients, got {model}, which is packaged with prod9 "
            "and saw simulated ones; leave out --model, --in-context and --control to train on them first"
        )
    file = place / SPLIT
    if file.is_file():
        return file
    from prod9.data.splits import Split
    from prod9.models.checkpoint_manager import CheckpointManager

    split = Split.from_dict(CheckpointManager.open(place).header["split"])
    if not split.train:
        raise ConfigError(
            f"--split: expected the split of the models, got a header without patients in {place}; name the split.json "
            "of their run with --split: it says which patients were trained on"
        )
    split.save(output / SPLIT)
    return output / SPLIT


def _least_tested(cases: "Sequence[Case]", false_alarms: float) -> int:
    """Return how many held-out patients the audit needs, each with the modalities that all have."""
    from prod9.evaluation.audit.run import MIN_PATIENTS, required_held_out

    volumes = min(len(case.images) for case in cases)
    needed = required_held_out(false_alarms, _EMBEDDINGS)
    return max(MIN_PATIENTS, -(-needed // volumes))


def _require_tested(split: "Split", cases: "Sequence[Case]", false_alarms: float, file: Path) -> None:
    """Refuse (ConfigError) a split of other patients, or one that holds out too few for the audit."""
    there = {case.patient_id for case in cases}
    if not there & set(split.train):
        raise ConfigError(
            f"{file}: expected a split of the patients of BRATS, got one without any of them; name the folder that the "
            "models were trained on, or their split.json with --split"
        )
    tested, least = len(there & set(split.test)), _least_tested(cases, false_alarms)
    if tested < least:
        raise ConfigError(
            f"{file}: expected at least {plural(least, 'test patient')} for the audit, got {tested}; train with a "
            "larger data.split.test, or audit less sharply with a larger --false-alarms"
        )


def _require_folds(patients: int, folds: int) -> None:
    """Refuse (ConfigError) folds of which some would validate on nobody, before anything is trained or made."""
    if patients < folds:
        raise ConfigError(
            f"--folds: expected at least {folds} real patients beside those of the test for {folds} folds, got "
            f"{patients}; give more patients, or fewer --folds"
        )
