"""Two gloo processes end up with the same gradients and metrics, on different batches."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(module: str, folder: Path) -> None:
    """Run ``python -m module folder`` as two processes that find each other, to their end."""
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    with ExitStack() as stack:
        children = []
        for rank in "01":
            log = stack.enter_context((folder / f"rank-{rank}.log").open("w+"))
            command = [sys.executable, "-m", module, str(folder)]
            env = shared | {"RANK": rank, "LOCAL_RANK": rank}
            child = stack.enter_context(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log))
            stack.callback(child.kill)
            children.append(child)
        codes = [child.wait(timeout=240) for child in children]
    logs = [(folder / f"rank-{rank}.log").read_text()[-3000:] for rank in "01"]
    assert codes == [0, 0], "\n".join(logs)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_ranks("tests.training.two_ranks", folder)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in "01"]


@pytest.mark.slow
def test_gradients_are_the_same_on_both_ranks_and_their_batches_are_not(reports):
    first, second = reports
    # Stage 1: 6 steps of the autoencoder and 4 of the discriminator, less one skipped step of both; then the
    # four others, 6 each.
    assert len(first["gradients"]) == (6 - 1) + (4 - 1) + 4 * 6
    assert first["gradients"] == second["gradients"]
    assert first["inputs"] != second["inputs"]
    assert len(first["inputs"]) == 5 * 6


@pytest.mark.slow
def test_a_bad_batch_on_one_rank_is_skipped_by_both(reports):
    assert [report["autoencoder"]["skipped"] for report in reports] == [1, 1]


@pytest.mark.slow
def test_metrics_and_checkpoints_agree(reports):
    for stage in ("autoencoder", "transformer", "maskgit_controlnet", "refiner", "maisi_controlnet"):
        assert reports[0][stage] == reports[1][stage]
