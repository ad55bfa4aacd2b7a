"""``--part I/N`` and ``prod9 merge``: the parts together are the run in one piece, byte for byte."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from prod9 import volumes
from prod9.data.simulated.phantom import make_phantom
from prod9.data.stores.latents import TokenStore
from prod9.errors import ConfigError
from prod9.system.parts import ALL, WorkPart, parse_part, part_of_slurm
from tests.faults.test_r25_kill_at_every_call import dies
from tests.fixtures import write_brats_tree
from tests.harness import Ran, Workspace, later_models, next_of, run

ROOT = Path(__file__).resolve().parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An in-context model and a control network of the label model."""
    return later_models(tmp_path_factory.getbasetemp())


def _label(workspace: Workspace, later: tuple[Path, Path], out: Path) -> list[object]:
    return [
        "label", "--model", workspace.run2, "-l", "T1", "-l", "T2", "-n", 3, "--batch-size", 2, "--steps", 1, "-o", out,
    ]  # fmt: skip


def _control(workspace: Workspace, later: tuple[Path, Path], out: Path) -> list[object]:
    segs = [part for seg in sorted(workspace.cohort.rglob("*seg.nii.gz"))[:2] for part in ("--seg", seg)]
    return [
        "control", "--model", later[1], *segs, "--label", "T1", "--steps", 1, "-o", out,
    ]  # fmt: skip


def _inpaint(workspace: Workspace, later: tuple[Path, Path], out: Path) -> list[object]:
    case = sorted(workspace.cohort.iterdir())[0]
    source, region = case / f"{case.name}-t1n.nii.gz", out.parent / "region.nii.gz"
    file = volumes.read(source)
    data = np.zeros(file.header.shape)
    data[6:10, 7:11, 5:9] = 1
    volumes.write(region, data, file.header.affine, dtype=np.uint8)
    return [
        "inpaint", "--model", workspace.run2, "--source", source, "--region", region, "--label", "T1", "-n", 2,
        "--steps", 1, "-o", out,
    ]  # fmt: skip


def _patients(workspace: Workspace, later: tuple[Path, Path], out: Path) -> list[object]:
    return [
        "patients", "--model", workspace.run2, "--in-context", later[0], "--control", later[1], "--num", 2,
        "--seg", workspace.cohort, "-o", out,
    ]  # fmt: skip


def _translate(workspace: Workspace, later: tuple[Path, Path], out: Path) -> list[object]:
    cases = [part for case in sorted(workspace.cohort.iterdir())[:2] for part in ("--patient", case)]
    return ["translate", "--model", later[0], "--target", "T2", *cases, "-o", out]


def _masks(workspace: Workspace, later: tuple[Path, Path], out: Path) -> list[object]:
    return ["masks", "--vary", workspace.cohort, "-n", 5, "-o", out]


@pytest.mark.parametrize("arguments", [_label, _control, _inpaint, _patients, _translate, _masks])
def test_the_parts_together_are_one_piece(
    workspace: Workspace, later: tuple[Path, Path], tmp_path: Path, arguments: Callable[..., list[object]]
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    ran = run("prod9", "generate", *arguments(workspace, later, whole), "--json")
    assert ran.code == 0, ran.err
    made = 0
    order = (3, 1, 4, 2) if arguments is _label else (2, 1)
    for number in order:
        given = ("--json", "--part", f"{number}/{len(order)}")
        part = run("prod9", "generate", *arguments(workspace, later, parted), *given)
        assert part.code == 0, part.err
        assert part.json["kept"] == 0
        made += len(part.json["made"])
    assert made == len(ran.json["made"])
    merged = run("prod9", "merge", parted, "--json")
    assert merged.code == 0, merged.err
    assert merged.json["parts"] == len(order)
    there, expected = contents(parted), contents(whole)
    assert there.keys() == expected.keys()
    assert [name for name in there if there[name] != expected[name]] == []
    # Nothing is left to make, and the merged folder can be filled further by parts.
    again = run("prod9", "generate", *arguments(workspace, later, parted), "--json", "--part", "1/2")
    assert again.code == 0, again.err
    assert again.json["made"] == []


def test_killed_parts_of_masks_end_as_if_nothing_had_happened(workspace: Workspace, tmp_path: Path) -> None:
    def masks(out: Path, *args: object) -> Ran:
        return run("prod9", "generate", "masks", "--vary", workspace.cohort, "-n", 4, "-o", out, *args)

    whole, parted, kills = tmp_path / "whole", tmp_path / "parted", 0
    assert masks(whole).code == 0
    for part in ("1/2", "2/2"):
        number = 0
        while dies(parted, number, partial(masks, parted, "--part", part)):  # each time it gets further
            number, kills = number + 7, kills + 1
    assert next_of(masks(parted, "--part", "1/2"))[1] == "merge"
    assert next_of(run("prod9", "merge", parted))[1:3] == ("evaluate", "masks")
    assert kills >= 10
    assert contents(parted) == contents(whole)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients with one scan each."""
    root = tmp_path_factory.mktemp("heads")
    for k in range(2):
        phantom = make_phantom(spacing_mm=8.0, with_tumour=False, rng=np.random.default_rng(k))
        case = f"BraTS-GLI-{k:05d}-000"
        (root / case).mkdir()
        volumes.write(root / case / f"{case}-t1n.nii.gz", phantom.scans["T1"], phantom.affine)
    return root


def preprocess(heads: Path, out: Path, *more: object) -> Ran:
    return run("prod9", "data", "preprocess", heads, out, "--no-strip", "--spacing", 8, "--json", *more)


def test_preprocessed_parts_are_the_folder_in_one_piece(heads: Path, tmp_path: Path) -> None:
    whole, parted = tmp_path / "a" / "out", tmp_path / "b" / "out"
    assert preprocess(heads, whole).code == 0
    assert preprocess(heads, parted, "--part", "2/2").json["made"] == ["BraTS-GLI-00001-000"]
    assert run("prod9", "merge", parted).code == 1
    assert preprocess(heads, parted, "--part", "1/3").code == 2
    first = "--part", "1/2"
    dies(parted / "part-1-of-2", 20, partial(preprocess, heads, parted, *first))
    assert preprocess(heads, parted, *first).code == 0
    # Killed before every fourth call of the merge: what was there is there, and the next one ends it.
    for number in range(1, 100, 4):
        shutil.copytree(parted, tmp_path / "copy" / "out")
        if not dies(tmp_path / "copy", number, partial(run, "prod9", "merge", tmp_path / "copy" / "out")):
            break
        merged = run("prod9", "merge", tmp_path / "copy" / "out")
        done = merged.code == 0 or "expected folders of parts" in merged.err
        assert done, (number, merged.err)
        (tmp_path / "copy" / "out" / ".merge.lock").unlink(missing_ok=True)  # killed just before
        assert contents(tmp_path / "copy" / "out") == contents(whole), number
        shutil.rmtree(tmp_path / "copy")
    assert number > 15
    assert contents(tmp_path / "copy" / "out") == contents(whole)
    assert preprocess(heads, tmp_path / "copy" / "out", "--part", "1/2").json["made"] == []


def test_reconstructed_parts_are_the_folder_in_one_piece(workspace: Workspace, tmp_path: Path) -> None:
    def infer(out: Path, *args: object) -> Ran:
        ran = run(
            "prod9-train-autoencoder", "infer", workspace.cohort, "--model", workspace.run1, "-o", out, "--json",
            "--save-tokens", *args,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        return ran

    whole, parted = tmp_path / "whole", tmp_path / "parted"
    made = len(infer(whole).json["made"])
    assert sum(len(infer(parted, "--part", part).json["made"]) for part in ("2/2", "1/2")) == made
    assert run("prod9", "merge", parted).code == 0
    assert contents(parted) == contents(whole)


def test_encoded_parts_are_the_store_in_one_piece(workspace: Workspace, tmp_path: Path) -> None:
    def encode(name: str, *args: object) -> Ran:
        ran = run(
            "prod9", "encode", "--config", workspace.stage2, "--output-dir", tmp_path / name, "--json", *args
        )
        assert ran.code == 0, ran.err
        return ran

    total = encode("whole").json["items"]
    items = [encode("parted", "--part", f"{number}/4").json["items"] for number in (2, 4, 1, 3)]
    assert sum(items) == total
    assert min(items) > 0
    store = tmp_path / "parted" / "store"
    assert run("prod9", "merge", store).code == 0
    assert not list(store.glob("part-*"))
    found, expected = (
        {
            (one["case_id"], one["modality"], one["flipped"]): (
                opened[k]["indices"].numpy().tobytes(),
                opened.latent(k).numpy().tobytes(),
                opened.foreground(k).numpy().tobytes(),
            )
            for k in range(len(opened))
            for one in [opened.describe(k)]
        }
        for opened in (TokenStore.open(store), TokenStore.open(tmp_path / "whole" / "store"))
    )
    assert found == expected
    # The run finds all of it, and a part has nothing left to do.
    assert encode("parted").json["items"] == total
    assert encode("parted", "--part", "2/4").json["items"] == 0
    other = run(
        "prod9", "encode", "--config", workspace.stage2, "--output-dir", tmp_path / "parted", "--part", "1/2"
    )
    assert other.code == 2
    assert "1/2" in other.err


def test_features_of_parts_give_the_same_scores(workspace: Workspace, tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_brats_tree(made, 5, seed=7)

    def evaluate(name: str, *args: object) -> Ran:
        return run(
            "prod9", "evaluate", "images", workspace.cohort, made, "-o", tmp_path / name, "--replicates", 5,
            "--json", "--modality", "T1", "--modality", "T2", *args,
        )  # fmt: skip

    whole = evaluate("whole")
    assert whole.code == 0, whole.err
    volumes_of_parts = 0
    for number in (2, 3, 1):
        part = evaluate("parted", "--part", f"{number}/3")
        assert part.code == 0, part.err
        volumes_of_parts += part.json["volumes"]
        assert (run("prod9", "merge", tmp_path / "parted").code == 0) == (number == 1)
    assert volumes_of_parts == (6 + 5) * 2
    features = contents(tmp_path / "parted" / "features")
    assert len(features) == volumes_of_parts
    joined = evaluate("parted")
    assert joined.code == 0, joined.err
    assert joined.json == whole.json
    # Nothing was described again.
    assert contents(tmp_path / "parted" / "features") == features
    # Other content under the same name is.
    file = next(iter(sorted(made.rglob("*t1n.nii.gz"))))
    volume = volumes.read(file)
    volumes.write(file, volume.data[::-1].copy(), volume.header)
    again = evaluate("parted", "--overwrite")
    assert again.code == 0, again.err
    assert again.json["scores"] != whole.json["scores"]
    assert evaluate("other", "--part", "1/2", "--skip-bad").code == 2


@pytest.fixture
def two_parts(workspace: Workspace, tmp_path: Path) -> Path:
    """A folder with both parts of four volumes."""
    out = tmp_path / "out"
    for part in ("1/2", "2/2"):
        assert _volumes(workspace, out, "--part", part).code == 0
    return out


def _volumes(workspace: Workspace, out: Path, *args: object) -> Ran:
    return run(
        "prod9", "generate", "label", "--model", workspace.run2, "-l", "T1", "-n", 4, "--steps", 1, "-o", out, *args
    )  # fmt: skip


def test_merging_refuses_gaps(workspace: Workspace, two_parts: Path) -> None:
    def refused(code: int) -> str:
        before = contents(two_parts)
        ran = run("prod9", "merge", two_parts)
        assert ran.code == code, ran.err
        assert {**contents(two_parts), ".merge.lock": b""} == {**before, ".merge.lock": b""}
        return " ".join(ran.err.split())

    second = two_parts / "part-2-of-2"
    (second / "T1_0003.nii.gz").unlink()
    assert "T1_0003.nii.gz is missing" in refused(1)
    shutil.rmtree(second)
    assert "--part 2/2" in refused(1)
    assert _volumes(workspace, two_parts, "--part", "2/2", "--seed", 1).code == 0
    assert "seed: 1, there 0" in refused(2)
    shutil.rmtree(second)
    assert _volumes(workspace, two_parts, "--part", "2/2", "-n", 6).code == 0
    assert "same number of samples" in refused(2)
    shutil.rmtree(second)
    assert _volumes(workspace, two_parts, "--part", "2/2").code == 0
    record = second / "part.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"names": [*content["names"], "T1_0000.nii.gz"]}))
    assert "in part 1/2 and part 2/2" in refused(1)
    record.write_text(json.dumps(content))
    assert run("prod9", "merge", two_parts).code == 0
    assert "got none" in refused(1)


def test_what_a_merge_does_not_know_is_kept(workspace: Workspace, two_parts: Path) -> None:
    note = two_parts / "part-1-of-2" / "note.txt"
    note.write_text("mine")
    (two_parts / "T1_0000.nii.gz").write_bytes(b"another")
    ran = run("prod9", "merge", two_parts)
    assert ran.code == 1
    assert "other content" in ran.err
    (two_parts / "T1_0000.nii.gz").unlink()
    ran = run("prod9", "merge", two_parts)
    assert ran.code == 0
    assert "note" not in contents(two_parts)
    assert note.read_text() == "mine"


def test_parts_of_another_number_and_of_one_file_are_refused(
    workspace: Workspace, later: tuple[Path, Path], two_parts: Path, tmp_path: Path
) -> None:
    assert _volumes(workspace, two_parts, "--part", "1/3").code == 2
    case = sorted(workspace.cohort.iterdir())[0]
    ran = run(
        "prod9", "generate", "translate", "--model", later[0], "--source", f"T1={case}/{case.name}-t1n.nii.gz",
        "--target", "T2", "--output", tmp_path / "made.nii.gz", "--part", "1/2",
    )  # fmt: skip
    assert ran.code == 2
    assert "--patient" in ran.err


def test_a_task_of_an_array_does_its_part(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ID": "6", "COUNT": "3", "MIN": "4", "STEP": "2", "MAX": "8"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    ran = _volumes(workspace, tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["made"] == ["T1_0001.nii.gz"]
    assert "Part 2/3" in ran.err
    assert _volumes(workspace, tmp_path / "all", "--json", "--part", "1/1").json["kept"] == 0
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    assert _volumes(workspace, tmp_path / "odd").code == 2


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_other_texts_are_no_parts(text: str) -> None:
    with pytest.raises(ConfigError, match="--part"):
        parse_part(text)


def test_each_piece_has_one_part() -> None:
    for count in range(1, 7):
        parts = [WorkPart(number, count) for number in range(1, count + 1)]
        assert all(sum(part.owns(piece) for part in parts) == 1 for piece in range(20))
        assert [parse_part(str(part)) for part in parts] == parts
    environments = [
        {
            f"SLURM_ARRAY_TASK_{name}": str(value)
            for name, value in zip(("ID", "COUNT", "MIN", "STEP"), one, strict=True)
        }
        for one in [
            (first + step * k, 5, first, step) for first in (0, 1, 7) for step in (1, 3) for k in range(5)
        ]
    ]
    found = [part_of_slurm(environment) for environment in environments]
    assert found == [WorkPart(k + 1, 5) for _ in range(6) for k in range(5)]
    assert part_of_slurm({}) == part_of_slurm({"SLURM_JOB_ID": "3"}) == ALL


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "slurm").iterdir()), ids=lambda path: path.name)
def test_job_scripts_are_well_formed(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/bin/bash\n")
    assert "set -euo pipefail" in text
    # The command of ours is understood by its parser.
    from tests.architecture.commands_of_pages import Line, parsed

    start = text.index("\nprod9 ") + 1 if "\nprod9 " in text else text.index("prod9 train ")
    words = shlex.split(text[start:].replace("\\\n", " ").rstrip().removesuffix("'"))
    assert parsed(Line(path.name, tuple(words), None))
