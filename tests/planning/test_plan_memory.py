"""What a plan says of memory against what training takes, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prod9.config.schema import RunConfig
from prod9.config.yaml import dump_yaml
from prod9.data.checking.fingerprint import fingerprint
from prod9.data.checking.report import check_dataset
from prod9.models.meta import count_parameters
from prod9.planning.choose import GIB, StagePlan, plan_family
from tests.fixtures import write_brats_tree
from tests.harness import run

ONE_STEP = (
    "training.max_steps=1", "training.validate_every_steps=1", "training.lr_schedule.warmup_steps=0",
    "trainer.accelerator=cpu", "trainer.loggers=[csv]", "trainer.progress=false", "callbacks.num_samples=0",
    "data.max_val_volumes=1",
)  # fmt: skip


THIN = ("model.num_channels=[8, 8, 8]", "model.norm_num_groups=4", "loss.adversarial.weight=0.0",
        "loss.perceptual.network=none")  # fmt: skip


def peak_gib(stage: StagePlan[RunConfig], command: str, folder: Path, *more: str) -> float:
    """Train one step in a process of its own and return the memory that it took."""
    config = folder / f"{command}.yaml"
    config.write_text(dump_yaml(stage.values), encoding="utf-8")
    call = f"from prod9.cli.{command} import main; main()"
    changes = [f"--set={change}" for change in (*ONE_STEP, *more)]
    subprocess.run(
        [sys.executable, "-c", call, "train", "--config", str(config), *changes],
        check=True,
        capture_output=True,
    )
    (session,) = json.loads((Path(stage.config.output_dir) / "run.json").read_text())["runs"]
    return session["peak_rss_gib"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("measured", ["autoencoder", "transformer"])
def test_the_predicted_peak_is_within_a_quarter_of_the_measured_one(tmp_path: Path, measured: str) -> None:
    write_brats_tree(tmp_path / "data", 3, (48, 64, 48), spacing=3.5)
    made = fingerprint(check_dataset(tmp_path / "data", deep=True)) | {"grid": [48, 64, 48]}
    # As of many patients: few would get a small transformer.
    made |= {"cases": 2000, "modalities": dict.fromkeys(made["modalities"], 2000)}
    plans = plan_family(
        made,
        family="maskgit",
        memory_bytes=int(2.4 * GIB),
        device="cpu",
        output_dir=str(tmp_path / "runs"),
        count=count_parameters,
    )
    stage1, stage2 = plans["stage1"], plans["stage2_label"]
    if measured == "autoencoder":
        # The discriminator takes part from the first step on: the plan allows for it.
        peak, stage = peak_gib(stage1, measured, tmp_path, "loss.adversarial.start_step=0"), stage1
    else:
        config = tmp_path / "stage1.yaml"
        config.write_text(dump_yaml(stage1.values), encoding="utf-8")
        changes = [f"--set={change}" for change in (*ONE_STEP, *THIN)]
        ran = run("prod9-train-autoencoder", "train", "--config", config, *changes)
        assert ran.code == 0, ran.err
        peak, stage = peak_gib(stage2, measured, tmp_path), stage2
    predicted = stage.peak_bytes / GIB
    assert predicted > 1.5, "most of it is the libraries otherwise"
    assert predicted == pytest.approx(peak, rel=0.25)
