"""Runs of tiny networks on data from memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Torch and Lightning are imported where they are used: tests of configs share this folder and start at once.


@pytest.fixture
def memory_data(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let runs take their data from memory; entries of the result are keywords of ``MemoryData``."""
    from prod9.training import run
    from tests.training.tiny import MemoryData

    options: dict[str, Any] = {}
    monkeypatch.setattr(run, "build_data_module", lambda config, *_, **__: MemoryData(config, **options))
    return options


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Any]:
    """Return ``make(stage, name, **sections)``; stage 2 gets an untrained autoencoder."""
    from tests.training import tiny_control, tiny_maisi
    from tests.training.tiny import autoencoder_config, transformer_config, write_autoencoder

    upstream = tmp_path / "upstream.ckpt"

    def make(stage: str, name: str, **sections: Any) -> Any:
        if stage == "autoencoder":
            return autoencoder_config(tmp_path / "data", tmp_path / name, **sections)
        if stage.startswith("maisi"):
            return tiny_maisi.make(stage, tmp_path, name, **sections)
        if stage == "maskgit_controlnet":
            return tiny_control.make(tmp_path, name, **sections)
        if not upstream.exists():
            write_autoencoder(upstream)
        return transformer_config(tmp_path / "data", tmp_path / name, upstream, **sections)

    return make


@pytest.fixture
def last_state() -> Callable[[Path], dict[str, Any]]:
    """Return a reader of everything in ``last.ckpt`` that decides how training goes on."""

    import torch

    def read(output_dir: Path) -> dict[str, Any]:
        content = torch.load(output_dir / "checkpoints" / "last.ckpt", weights_only=True)
        kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "prod9_run")
        return {name: content[name] for name in kept if name in content} | {"step": content["prod9"]["step"]}

    return read


@pytest.fixture
def logged() -> Callable[[Path], list[dict[str, str]]]:
    """Return a reader of all CSV rows of a run, all sessions in order."""
    import csv

    def read(output_dir: Path) -> list[dict[str, str]]:
        files = sorted((output_dir / "logs" / "csv").glob("*/metrics.csv"))
        return [row for file in files for row in csv.DictReader(file.read_text().splitlines())]

    return read


@pytest.fixture
def run_json() -> Callable[[Path], list[dict[str, Any]]]:
    """Return a reader of the sessions of a run."""
    return lambda output_dir: json.loads((output_dir / "run.json").read_text())["runs"]
