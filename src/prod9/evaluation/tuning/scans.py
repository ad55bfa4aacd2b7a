"""The validation scans of a run."""

from pathlib import Path

import torch

from prod9.config.load import config_from_dict
from prod9.errors import ConfigError
from prod9.evaluation.judges.features import SliceExtractor
from prod9.evaluation.sets.entries import BadFiles, Entry
from prod9.evaluation.sets.rows import SetRows, describe_set
from prod9.evaluation.sets.volume_sets import find_volumes
from prod9.evaluation.settings import Report
from prod9.evaluation.tuning.quality import FEWEST, ScanReader, names_of
from prod9.models.checkpoint_header import Opened
from prod9.pipelines.labels import AbstractLabelPipeline


def validation_scans(opened: Opened, *, data: Path | None = None) -> list[Entry]:
    """Return the volumes of the validation patients that the header of a checkpoint names, and of no others.

    data: where the cases are now; by default where the run read them. Raises ConfigError for a run on MedMNIST3D, for
    too few validation patients, and where they are not found.
    """
    config = config_from_dict(opened.header["config"], source=str(opened.path)).data
    if config.kind == "medmnist3d":
        raise ConfigError(
            f"{opened.path}: expected a run on files, got one on MedMNIST3D, whose volumes lie in one .npz; tune "
            "a run on a folder of patients"
        )
    wanted = list(opened.header["split"].get("val", []))
    if len(wanted) < FEWEST:
        raise ConfigError(
            f"{opened.path}: expected at least {FEWEST} validation patients to compare with, got {len(wanted)}; train "
            "with a larger data.split.val (test patients are never used for this)"
        )
    root = data or Path(config.root)
    if not root.is_dir():
        raise ConfigError(
            f"{root}: expected the folder of the run's patients, got none there; name it with --data DIR"
        )
    found = find_volumes(root, layout=config.layout, modalities=config.modalities)
    chosen = [entry for entry in found if entry.patient_id in frozenset(wanted)]
    absent = sorted(set(wanted) - {entry.patient_id for entry in chosen})
    if absent:
        raise ConfigError(
            f"{root}: expected the {len(wanted)} validation patients of {opened.path}, got all but {len(absent)} "
            f"({names_of(absent)}); name their folder with --data DIR"
        )
    return chosen


def describe_scans(
    entries: list[Entry],
    pipeline: AbstractLabelPipeline,
    extractor: SliceExtractor,
    *,
    device: torch.device,
    report: Report,
) -> SetRows:
    """Read the scans as training placed them, and return what is kept of them.

    Args:
        entries: the scans.
        pipeline: whose grid and intensities they get.
        extractor: of features.
        device: where to compute.
        report: called with the scans done and their number.
    """
    return describe_set(
        entries,
        ScanReader(pipeline.placement),
        [extractor],
        BadFiles(skip=False),
        device=device,
        progress=lambda done, total: report("Validation scans", done, total),
    )
