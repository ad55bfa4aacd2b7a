"""Two gloo processes end up with the same gradients and metrics, on different batches."""

import json

import pytest

from tests.processes import run_ranks
from tests.training.two_ranks import main


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    codes, logs = run_ranks(main, folder)
    assert codes == [0, 0], "\n".join(logs)
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
