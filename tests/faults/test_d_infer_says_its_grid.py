"""The decibels of `infer` say which voxels they were measured on."""

from tests.harness import run


def test_d_infer_says_which_grid_it_measured_on(models, workspace, tmp_path):
    scan = sorted(workspace.cohort.rglob("*-t1n.nii.gz"))[0]
    command = ("prod9-train-autoencoder", "infer", scan, "-m", models.stage1, "-o", tmp_path)
    ran = run(*command)
    assert "dB in the head, on the voxels of the file" in ran.err
    assert ran.out.startswith("1 volume made, 0 kept")
    assert "on the voxels of the file" in ran.out
    again = run(*command, "--json")
    assert again.json["measured_on"] == "the voxels of the file"
    assert set(again.json["mean"]) == {"psnr", "psnr_head"}
