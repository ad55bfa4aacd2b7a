"""A run folder as training leaves it, written by hand: the report reads files and no model."""

import json

import numpy as np
import yaml

from prod9.volumes import write
from tests.evaluation.audit_cohort import head
from tests.fixtures import write_brats_tree


def write_run(root, *, stage="transformer", kind="label_conditional", data=None, name="stage2"):
    """Write a run with config, split, two sessions' logs, records and hashes, and return its folder."""
    run = root / name
    (run / "logs" / "csv" / "from-step-000000").mkdir(parents=True)
    (run / "checkpoints").mkdir()
    config = {
        "stage": stage,
        "output_dir": str(run),
        "data": {
            "kind": "brats", "root": str(data), "layout": "auto", "label_scheme": "auto", "grid": [24, 24, 24],
            "modalities": ["T1", "FLAIR"], "spacing": [4.0, 4.0, 4.0],
            "intensity": {"mode": "percentile", "lower": 0.0, "upper": 99.5},
        },
        "model": {"kind": kind},
    }  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    rows = "step,train/loss,val/loss,val/accuracy\n1,5.0,,\n2,4.0,,\n2,,4.5,0.1\n3,nan,,\n4,,3.5,0.2\n"
    (run / "logs" / "csv" / "from-step-000000" / "metrics.csv").write_text(rows)
    session = {
        "outcome": "finished",
        "to_step": 4,
        "seconds": 90.0,
        "device": "cpu",
        "versions": {"torch": "2.15.0"},
    }
    (run / "run.json").write_text(json.dumps({"runs": [session]}))
    metrics = {
        "metrics": {"val/loss": 3.5},
        "best": [{"file": "best-step=000004.ckpt", "step": 4, "value": 3.5}],
    }
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "checkpoints" / "last.ckpt.sha256").write_text(f"{'ab' * 32}  last.ckpt\n")
    split = {"format": 1, "train": ["BraTS-GLI-00000"], "val": [], "test": ["BraTS-GLI-00001"]}
    (run / "split.json").write_text(json.dumps(split))
    return run


def write_generated(folder):
    """Write two small generated volumes of two modalities, as `prod9 generate label` names them."""
    folder.mkdir(parents=True)
    for k, kind in enumerate(("T1", "FLAIR")):
        write(folder / f"{kind}_0000.nii.gz", head(k), np.diag([4.0, 4.0, 4.0, 1.0]))
    return folder


def write_whole(root):
    """Write a run with everything a report can show, and return its folder."""
    write_brats_tree(root / "cohort", 2, (22, 24, 20))
    run = write_run(root, data=root / "cohort")
    write_generated(run / "volumes")
    (run / "audit").mkdir()
    (run / "evaluation").mkdir()
    pair = {
        "generated": "T1_0000.nii.gz", "train": {"case": "BraTS-GLI-00000-000", "modality": "T1", "file": "x"},
        "mirrored_axes": [0], "relative_distance": {"voxels": 0.02}, "p_value": 0.02, "suspect": True,
    }  # fmt: skip
    audit = {
        "command": "audit", "passed": False, "share_suspect": 0.5, "max_share": 0.1, "false_alarms": 0.05,
        "sets": {k: {"volumes": 2, "patients": 2} for k in ("train", "held_out", "generated")},
        "embeddings": [{"name": "voxels", "threshold": 0.6, "authenticity": 0.5, "held_out": [0.8, 0.9],
                        "generated": [0.02, 0.9]}],
        "pairs": [pair, {**pair, "generated": "FLAIR_0000.nii.gz", "suspect": False}],
    }  # fmt: skip
    (run / "audit" / "audit.json").write_text(json.dumps(audit))
    row = {
        "group": "distribution", "metric": "kid", "modality": "all", "region": None, "extractor": "random-0",
        "value": 0.0123, "low": 0.01, "high": 0.02, "floor": 0.001, "unit": "", "reliable": False, "note": None,
    }  # fmt: skip
    undefined = {**row, "metric": "frechet_3d", "value": None, "note": "too few"}
    (run / "evaluation" / "evaluation.json").write_text(json.dumps({"scores": [row, undefined]}))
    return run
