"""An export is shared, and still held paths of this computer: of the covariates' table, and of the weak model."""

import json
from pathlib import Path
from typing import Any

from prod9.models.exporting import _without_paths


def test_f06_an_export_names_no_folder_of_this_computer() -> None:
    place = "/home/me/clinic"
    config = {
        "output_dir": f"{place}/run",
        "data": {"root": f"{place}/scans", "store_dir": None, "cache_dir": place, "split": {"file": place}},
        "inputs": {"autoencoder": f"{place}/stage1"},
        "covariates": {"file": f"{place}/patients.csv", "numbers": {"age": [0, 100]}},
        "sampler": {"steps": 3, "weak_model": f"{place}/small"},
    }
    header: Any = {"config": config, "inputs": {}}
    told = _without_paths(header)
    assert place not in json.dumps(told)
    # A model of scans needs the name of a table.
    assert told["config"]["covariates"]["file"] == "patients.csv"
    assert told["config"]["sampler"] == {"steps": 3, "weak_model": "auto"}
    assert header["config"]["covariates"]["file"] == str(Path(place) / "patients.csv")


def test_f06_a_config_without_these_stays_as_it_is() -> None:
    config = {"data": {"name": "x"}, "covariates": None, "sampler": {"steps": 3}}
    header: Any = {"config": config}
    assert _without_paths(header)["config"]["sampler"] == {"steps": 3}
