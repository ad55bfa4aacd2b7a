"""``prod9 augment`` again after a real patient was corrected: the data set kept the old files, as finished."""

import json
import os
import shutil
from pathlib import Path

import pytest

from prod9.cli.augment import command
from prod9.cli.augment.steps import Asked
from prod9.cli.generate.patients import case_id
from prod9.data.formats.nnunet import NNUNET
from prod9.data.layouts.find import find_cases
from tests.fixtures import write_brats_tree


def test_f05_a_corrected_segmentation_reaches_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = tmp_path / "real", tmp_path / "out" / "made"
    write_brats_tree(real, 3, seed=3)
    (source,) = write_brats_tree(tmp_path / "source", 1)
    shutil.copytree(source, made / case_id(0))
    for file in (made / case_id(0)).iterdir():
        file.rename(file.with_name(file.name.replace(source.name, case_id(0))))
    (made / "manifest.json").write_text("{}")
    patients = [case.patient_id for case in find_cases(real)]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"format": 1, "train": patients, "val": [], "test": []}))
    asked = Asked(real, split, "model", tmp_path / "out", NNUNET, 0, 0, 0.05)
    audits = []

    def audit(asked: Asked, notes: object, key: object, device: object) -> dict[str, list[object]]:
        audits.append(key)
        return {"pairs": [], "embeddings": []}

    monkeypatch.setattr(command, "audit_made", audit)
    command._finish(asked, 1, 1, "cpu", None)
    first, other = (find_cases(real)[k].seg for k in (0, 1))
    assert first is not None
    assert other is not None
    name = next((tmp_path / "out/dataset/labelsTr").glob(f"*{first.parent.name}*"))
    before = name.read_bytes()
    state = first.stat()
    first.unlink()  # the data set may link to it
    shutil.copy(other, first)
    os.utime(first, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    command._finish(asked, 1, 1, "cpu", None)
    assert name.read_bytes() != before
    assert audits[0] != audits[1]
    command._finish(asked, 1, 1, "cpu", None)
    assert audits[1] == audits[2]
