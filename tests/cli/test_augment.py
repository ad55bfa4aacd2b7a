"""``prod9 augment``: from real patients to a data set with audited synthetic ones."""

import json
from pathlib import Path

import pytest

from prod9.data.formats.nnunet import SPLITS
from prod9.data.layouts.find import find_cases
from tests.fixtures import write_brats_tree
from tests.harness import Ran, Workspace, later_models, run


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Twelve patients, five of whom are held out."""
    root = tmp_path / "real"
    write_brats_tree(root, 12, seed=3)
    patients = [case.patient_id for case in find_cases(root)]
    parts = {"train": patients[:6], "val": patients[6:7], "test": patients[7:]}
    (tmp_path / "split.json").write_text(json.dumps({"format": 1, **parts}))
    return root


def augment(workspace: Workspace, real: Path, tmp: pytest.TempPathFactory, *args: object) -> Ran:
    translator, control = later_models(tmp.getbasetemp())
    return run(
        "prod9", "augment", real, "--model", workspace.run2, "--in-context", translator, "--control", control,
        "--split", real.parent / "split.json", "-o", real.parent / "out", "--false-alarms", 0.5, "--json", *args,
    )  # fmt: skip


def test_from_patients_to_an_audited_set(
    workspace: Workspace, real: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = real.parent / "out"
    given = ("-n", 3, "--measure", "--measure-steps", 1, "--measure-seeds", 1)
    ran = augment(workspace, real, tmp_path_factory, *given)
    assert ran.code == 0, ran.err
    result = ran.json
    made = {f"BraTS-SYN-{k:05d}-000" for k in range(3)}
    assert {case.case_id for case in find_cases(out / "made")} == made
    # Of whom a volume is suspect is thrown out, by name.
    audit = json.loads((out / "audit" / "audit.json").read_text())
    suspects = {
        part for pair in audit["pairs"] if pair["suspect"] for part in Path(pair["generated"]).parts
    } & made
    assert set(result["suspects"]) == suspects
    kept = made - suspects
    assert {case.case_id for case in find_cases(out / "accepted")} == kept
    described = json.loads((out / "dataset" / "dataset.json").read_text())
    assert set(described["synthetic_cases"]) == kept
    assert described["numTraining"] == 7 + len(kept)
    assert result["tested"] == 5 == len(list((out / "dataset" / "labelsTs").iterdir()))
    for fold in json.loads((out / "dataset" / SPLITS).read_text()):
        assert kept <= set(fold["train"])
        assert not kept & set(fold["val"])
    assert {row["trained_on"] for row in result["dice"]} == {"real", "synthetic", "both"}
    card = (out / "DATA_CARD.md").read_text()
    assert all(name in card for name in suspects)
    assert (out / "dataset" / "CARD.md").read_text() == card
    assert (out / "report.html").is_file()
    # Held-out patients are never followed.
    manifest = json.loads((out / "made" / "manifest.json").read_text())
    followed = {entry["segmentation"] for entry in manifest["files"].values() if "segmentation" in entry}
    assert followed <= {f"BraTS-GLI-{k:05d}-000" for k in range(6)}

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    again = augment(workspace, real, tmp_path_factory, *given)
    assert again.json == result
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")} == before

    part = augment(workspace, real, tmp_path_factory, "-n", 4, "--part", "2/2")
    assert part.code == 0, part.err
    assert "without --part" in part.err


def test_what_is_missing_is_named(
    workspace: Workspace, real: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def refused(*args: object) -> str:
        ran = augment(workspace, real, tmp_path_factory, *args)
        assert ran.code == 2, ran.err
        assert not (real.parent / "out").exists()
        return " ".join(ran.err.split())

    for case in find_cases(real):
        assert case.seg is not None
        case.seg.unlink()
    assert "that show a lesion, got none" in refused()
    (real.parent / "split.json").unlink()
    assert "which patients were trained on" in refused()
