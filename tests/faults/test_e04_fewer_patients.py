"""``prod9 augment`` with fewer patients than an earlier run made: the set holds those that were asked for."""

import json
import shutil
from pathlib import Path

from prod9.cli.augment.steps import Asked, Notes, write_sets
from prod9.cli.generate.patients import case_id
from prod9.data.formats.nnunet import NNUNET
from prod9.data.layouts.find import find_cases
from tests.fixtures import write_brats_tree


def test_patients_that_were_not_asked_for_stay_out(tmp_path: Path) -> None:
    """The audit's verdict counts for those that are asked for, so a suspect of an earlier run would slip in."""
    real, made = tmp_path / "real", tmp_path / "out" / "made"
    write_brats_tree(real, 4, seed=3)
    write_brats_tree(tmp_path / "source", 3)
    for number, folder in enumerate(sorted((tmp_path / "source").iterdir())):
        shutil.copytree(folder, made / case_id(number))
        for file in (made / case_id(number)).iterdir():
            file.rename(file.with_name(file.name.replace(folder.name, case_id(number))))
    patients = [case.patient_id for case in find_cases(real)]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"format": 1, "train": patients[:3], "val": [], "test": patients[3:]}))
    asked = Asked(real, split, "model", tmp_path / "out", NNUNET, 0, 0, 0.05)
    names = [case_id(0), case_id(1)]
    counts = write_sets(asked, Notes(asked.output), ["key"], names, [case_id(1)], "card")
    assert counts["synthetic"] == 1
    described = json.loads((asked.output / "dataset" / "dataset.json").read_text())
    assert described["synthetic_cases"] == [case_id(0)]
