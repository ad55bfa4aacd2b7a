"""`prod9 audit`, and report and card of a trained run."""

from tests.evaluation.audit_cohort import head, write_heads
from tests.harness import run


def test_copies_end_with_exit_code_1_a_list_and_pictures(tmp_path):
    train = write_heads(tmp_path / "train", [head(k) for k in range(6)])
    heldout = write_heads(tmp_path / "heldout", [head(100 + k) for k in range(9)])
    generated = write_heads(tmp_path / "generated", [head(2)[::-1], head(1000)])
    common = [
        "--train",
        str(train),
        "--heldout",
        str(heldout),
        "--generated",
        str(generated),
        "--false-alarms",
        "0.1",
    ]
    ran = run("prod9", "audit", *common, "-o", str(tmp_path / "out"), "--json")
    assert ran.code == 1, ran.err
    first = ran.json["pairs"][0]
    assert first["suspect"]
    assert first["generated"].endswith("generated000_t1.nii.gz")
    assert first["train"]["case"] == "train002"
    assert first["mirrored_axes"] == [0]
    assert (tmp_path / "out" / "nearest.png").read_bytes().startswith(b"\x89PNG")
    again = run("prod9", "audit", *common, "-o", str(tmp_path / "out"), "--max-share", "0.5")
    assert again.code == 0, again.err
    assert "1 of 2 suspect (50.0%; limit 50.0%): passed" in again.out


def test_without_held_out_cases_it_refuses(tmp_path):
    ran = run("prod9", "audit", "--train", str(tmp_path), "--generated", str(tmp_path))
    assert ran.code == 2
    assert "--heldout" in ran.err
    assert "never saw" in ran.err


def test_a_run_and_folders_together_are_refused(tmp_path):
    ran = run(
        "prod9", "audit", "--run", str(tmp_path), "--train", str(tmp_path), "--generated", str(tmp_path)
    )
    assert ran.code == 2
    assert "got both" in ran.err


def test_a_run_gives_its_patients_and_too_few_are_refused(workspace, tmp_path):
    generated = write_heads(tmp_path / "generated", [head(0)])
    ran = run("prod9", "audit", "--run", str(workspace.run2), "--generated", str(generated))
    assert ran.code == 1
    assert "at least 39 held-out volumes of 5 or more patients" in ran.err
    assert not (workspace.run2 / "audit" / "audit.json").exists()


def test_report_and_card_of_a_trained_run(workspace, tmp_path):
    page = tmp_path / "page.html"
    ran = run("prod9", "report", str(workspace.run2), "--output", str(page), "--json")
    assert ran.code == 0, ran.err
    assert ran.json["megabytes"] < 12
    assert "Real, held out" in page.read_text()
    assert run("prod9", "report", str(workspace.run2), "--output", str(tmp_path / "page.txt")).code == 2
    assert f"prod9 card {workspace.run2}" in run("prod9", "report", workspace.run2, "--output", page).err
    both = run("prod9", "report", workspace.run2.parent, "--output", page)
    assert both.code == 0, both.err
    assert "prod9 card" not in both.err, "a card is of one run"
    cards = run("prod9", "card", str(workspace.run1), "-o", str(tmp_path / "cards"))
    assert cards.code == 0, cards.err
    assert "FSQ autoencoder" in (tmp_path / "cards" / "MODEL_CARD.md").read_text()


def test_latents_of_a_runs_autoencoder_are_compared_too(workspace, tmp_path):
    folders = {
        "--train": write_heads(tmp_path / "train", [head(k) for k in range(4)]),
        "--heldout": write_heads(tmp_path / "heldout", [head(100 + k) for k in range(7)]),
        "--generated": write_heads(tmp_path / "generated", [head(1)[::-1]]),
    }
    options = [text for option, folder in folders.items() for text in (option, str(folder))]
    for model in (workspace.run1, workspace.run2):
        ran = run(
            "prod9", "audit", *options, "--model", model, "--false-alarms", "0.3", "-o", tmp_path, "--json"
        )
        assert ran.code == 1, ran.err
        names = [row["name"].split("-")[0] for row in ran.json["embeddings"]]
        assert names == ["voxels", "latents"]
        assert ran.json["pairs"][0]["train"]["case"] == "train001"
        assert (
            ran.json["embeddings"][1]["generated"][0] < 1e-3
        )  # mirrored left to right, its latents are a copy's
