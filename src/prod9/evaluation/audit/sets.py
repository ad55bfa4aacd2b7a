"""Volumes that a copy audit compares: those of folders, or those of a run by its split."""

from collections.abc import Sequence
from pathlib import Path

from prod9.config.load import load_config
from prod9.data.splits import Split
from prod9.errors import ConfigError
from prod9.evaluation.audit.volumes import AuditSets
from prod9.evaluation.sets.volume_sets import BadFiles, find_volumes


def sets_of_folders(
    train: Path,
    held_out: Path,
    generated: Path,
    *,
    modalities: Sequence[str] = (),
    bad: BadFiles | None = None,
) -> AuditSets:
    """Return the volumes of three folders; DataError where one holds none, or patients overlap.

    Args:
        train: folder of the training cases.
        held_out: folder of cases that the model never saw.
        generated: folder of generated volumes.
        modalities: only these; all by default.
        bad: notes what is left out; by default files that cannot be used are refused.
    """
    real = [
        find_volumes(root, modalities=modalities, without=generated, bad=bad) for root in (train, held_out)
    ]
    return AuditSets(real[0], real[1], find_volumes(generated, modalities=modalities, bad=bad))


def sets_of_run(
    run: Path,
    generated: Path,
    *,
    data: Path | None = None,
    modalities: Sequence[str] = (),
    bad: BadFiles | None = None,
) -> AuditSets:
    """Return the training and test volumes of ``run``, by its config and split, and those of ``generated``.

    Raises ConfigError for a folder that is no run, a run without test patients or on MedMNIST3D, and where the patients
    are not found.

    Args:
        run: the run's folder.
        generated: folder of generated volumes.
        data: where the cases are now; by default where the run read them.
        modalities: only these; by default those of the run.
        bad: notes what is left out; by default files that cannot be used are refused.
    """
    config_file, split_file = run / "config.yaml", run / "split.json"
    if not config_file.is_file():
        raise ConfigError(f"--run: expected a run folder with config.yaml and split.json, got {run}.")
    config = load_config(str(config_file))
    if config.data.kind == "medmnist3d":
        raise ConfigError(
            "--run: expected a run on files, got one on MedMNIST3D, whose volumes lie in one .npz; write training and "
            "test volumes as NIfTI and name them with --train and --heldout."
        )
    if not split_file.is_file():
        raise ConfigError(
            f"--run: expected {split_file}, got none; train first, or use --train and --heldout."
        )
    root = data or Path(config.data.root)
    return sets_of_split(
        split_file,
        root,
        generated,
        layout=config.data.layout,
        read=modalities or config.data.modalities,
        modalities=modalities,
        bad=bad,
    )


def sets_of_split(
    split_file: Path,
    root: Path,
    generated: Path,
    *,
    layout: str = "auto",
    read: Sequence[str] = (),
    modalities: Sequence[str] = (),
    bad: BadFiles | None = None,
) -> AuditSets:
    """Return the volumes of the training and of the test patients of a split, and those of ``generated``.

    Raises ConfigError for a split without test patients, and where the patients are not found.

    Args:
        split_file: a run's split.json.
        root: folder of the real cases.
        generated: folder of generated volumes.
        layout: of ``root``.
        read: modalities of the real cases; all by default.
        modalities: modalities of the generated volumes; all by default.
        bad: notes what is left out; by default files that cannot be used are refused.
    """
    split = Split.load(split_file)
    if not split.test:
        raise ConfigError(
            f"{split_file}: expected test patients, got none: validation patients were used to choose the "
            "model. Train with data.split.test above 0, or name unseen cases with --train and --heldout."
        )
    bad = BadFiles(skip=False) if bad is None else bad
    entries = find_volumes(root, layout=layout, modalities=read, without=generated, bad=bad)
    parts = []
    for what, patients in (("training", split.train), ("test", split.test)):
        bad.require_patients(patients, entries, what, root)
        wanted = frozenset(patients)
        parts.append([entry for entry in entries if entry.patient_id in wanted])
        if not parts[-1]:
            raise ConfigError(
                f"{root}: expected the {what} patients of {split_file}, got none; name their folder with --data."
            )
    return AuditSets(parts[0], parts[1], find_volumes(generated, modalities=modalities, bad=bad))
