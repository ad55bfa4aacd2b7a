"""``used.json`` of the app names the models by their hashes, and left out the refiner of a translation."""

from pathlib import Path

import prod9
from prod9.app.models import Model
from prod9.app.work import Request, Result, _record


def test_f09_the_record_of_a_translation_names_its_refiner() -> None:
    pipeline = prod9.load("demo/translate", device="cpu").pipeline
    model = Model("demo/translate", pipeline, ("translate",))
    request = Request(model="demo/translate", task="translate", label="T2")
    told = _record(model, request, [Result(Path("T2_0000.nii.gz"))])
    assert told["sha256"] == pipeline.sha256
    assert "refiner" in told["sha256"]
