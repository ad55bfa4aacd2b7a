"""The first losses of every stage, to the last bit: what moves code must not move numbers.

After a change that is meant to change them: ``python -m tests.training.test_reference_losses`` writes them anew.
"""

import csv
import hashlib
import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from tests.fixtures import write_brats_tree
from tests.soak.jobs import STAGES, write_config

REFERENCE = Path(__file__).with_name("reference_losses.json")
STEPS = 20
OTHER_MACHINE = 0.01
"""Relative difference that other kernels may make in so many steps of training; AVX2 made 5e-5."""


def machine() -> dict[str, str]:
    """Return what decides the last bits: the build of torch, and what its kernels make of some numbers here."""
    generator = torch.Generator().manual_seed(0)
    digest = hashlib.sha256()
    for channels, side in ((8, 16), (16, 8), (32, 5)):
        x = torch.randn(2, channels, side, side, side, generator=generator).requires_grad_()
        weight = torch.randn(channels, channels, 3, 3, 3, generator=generator).requires_grad_()
        y = F.silu(F.group_norm(F.conv3d(x, weight, padding=1), 4)).flatten(2)
        loss = (y.transpose(1, 2) @ y).softmax(-1).square().mean()
        for gradient in torch.autograd.grad(loss, (x, weight)):
            digest.update(gradient.numpy().tobytes())
    return {"torch": str(torch.__version__), "kernels": digest.hexdigest()[:16]}


def losses_of_every_stage(base: Path) -> dict[str, list[float]]:
    """Train every stage for 20 steps below ``base``, each upon those before, and return their total losses."""
    from prod9.config.load import load_config
    from prod9.training.run import train

    write_brats_tree(base / "cohort", 8)
    found = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in STAGES:
            path = write_config(base, name)
            values = yaml.safe_load(path.read_text())
            values["training"] |= {
                "max_steps": STEPS, "validate_every_steps": STEPS, "log_every_steps": 1,
            }  # fmt: skip
            path.write_text(yaml.safe_dump(values))
            train(load_config(path))
            found[name] = read_losses(base / name)
    finally:
        torch.set_num_threads(threads)
    return found


def read_losses(run: Path) -> list[float]:
    """Return the total loss of every step that a run has logged."""
    (log,) = run.glob("logs/csv/*/metrics.csv")
    rows = csv.DictReader(log.read_text().splitlines())
    key = "train/total" if "train/total" in (rows.fieldnames or ()) else "train/generator_total"
    return [float(row[key]) for row in rows if row[key]]


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    return losses_of_every_stage(tmp_path_factory.mktemp("reference"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_begins_with_the_losses_that_it_began_with(losses, stage):
    reference = json.loads(REFERENCE.read_text())
    expected = reference["losses"][stage]
    assert len(losses[stage]) == len(expected) == STEPS
    assert len(set(expected)) == STEPS
    if reference["machine"] == machine():
        assert losses[stage] == expected
    else:
        assert all(
            math.isclose(a, b, rel_tol=OTHER_MACHINE) for a, b in zip(losses[stage], expected, strict=True)
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        content = {"machine": machine(), "losses": losses_of_every_stage(Path(folder))}
    REFERENCE.write_text(json.dumps(content, indent=1) + "\n")
