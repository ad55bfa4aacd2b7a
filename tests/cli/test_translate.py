"""``prod9 generate translate``: from a patient's files to the one that is missing."""

import json
from pathlib import Path
from shutil import copytree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from prod9 import volumes
from tests.harness import Ran, Workspace, next_of, run
from tests.nifti_files import geometry_bytes, write_raw

TRANSLATOR = """
stage: transformer
output_dir: {folder}/translator
inputs: {{autoencoder: {folder}/stage1}}
data:
  root: {folder}/cohort
  split: {{train: 0.5, val: 0.25, test: 0.25}}
  grid: [16, 16, 16]
  batch_size: 2
model: {{kind: single_stream, embed_dim: 16, num_blocks: 2, num_heads: 2, patch_size: 2}}
context: {{max_examples: 1}}
sampler: {{steps: 3, order: random}}
training: {{max_steps: 4, validate_every_steps: 2, lr_schedule: {{warmup_steps: 1}}}}
callbacks: {{num_samples: 1}}
trainer: {{accelerator: cpu, loggers: [csv], progress: false}}
"""


@pytest.fixture(scope="module")
def translator(workspace: Workspace) -> Path:
    """The run folder of a tiny in-context model."""
    config = workspace.folder / "translator.yaml"
    config.write_text(TRANSLATOR.format(folder=workspace.folder), encoding="utf-8")
    ran = run("prod9-train-transformer", "train", "--config", config, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["step"] == 4
    return workspace.folder / "translator"


@pytest.fixture
def case(workspace: Workspace, tmp_path: Path) -> Path:
    """A patient's folder of its own."""
    source = sorted(workspace.cohort.iterdir())[0]
    return Path(copytree(source, tmp_path / "in" / source.name))


def file_of(case: Path, word: str) -> Path:
    return case / f"{case.name}-{word}.nii.gz"


def set_codes(path: Path, qform: int, sform: int) -> None:
    image = nib.load(path)
    fields = {"qform_code": qform, "sform_code": sform, "xyzt_units": 2}
    write_raw(path, np.asarray(image.dataobj), qform=image.affine, sform=image.affine, **fields)


def translate(model: Path, *args: object) -> Ran:
    return run("prod9", "generate", "translate", "--model", model, *args)


def sources(case: Path, **words: str) -> list[str]:
    return [part for name, word in words.items() for part in ("--source", f"{name}={file_of(case, word)}")]


def test_files_to_a_file_on_the_voxels_of_the_first(translator: Path, case: Path, tmp_path: Path) -> None:
    for word, codes in (("t1n", (2, 4)), ("t2f", (1, 1))):
        set_codes(file_of(case, word), *codes)
    out = tmp_path / "made.nii.gz"
    given = sources(case, T1="t1n", FLAIR="t2f")
    ran = translate(translator, *given, "--target", "T2", "--output", out, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["made"] == [out.as_posix()]
    assert geometry_bytes(out) == geometry_bytes(file_of(case, "t1n"))
    reference, made = nib.load(file_of(case, "t1n")), nib.load(out)
    np.testing.assert_allclose(made.affine, reference.affine, atol=1e-4)
    assert made.shape == reference.shape
    itk, source = sitk.ReadImage(str(out)), sitk.ReadImage(str(file_of(case, "t1n")))
    np.testing.assert_allclose(itk.GetDirection(), source.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(itk.GetOrigin(), source.GetOrigin(), atol=1e-3)
    raw = reference.get_fdata()
    head = (raw != 0) | (nib.load(file_of(case, "t2f")).get_fdata() != 0)
    assert not made.get_fdata()[~head].any()
    low, high = np.percentile(raw[raw != 0], (0, 99.5))
    inside = made.get_fdata()[head]
    assert inside.min() >= low - 1
    assert inside.max() <= high + 1
    assert list(tmp_path.glob("*.json")) == [], "no manifest among the user's own files"
    again = translate(translator, *given, "--target", "T2", "--output", out)
    assert again.code == 2
    assert "--overwrite" in again.err
    swapped = sources(case, FLAIR="t2f", T1="t1n")
    other = tmp_path / "swapped.nii.gz"
    assert next_of(translate(translator, *swapped, "--target", "T2", "--output", other))[1] == "app"
    assert nib.load(other).shape == reference.shape


def test_several_samples_give_a_mean_and_an_uncertainty(translator: Path, case: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.nii.gz"
    args = [*sources(case, T1="t1n", T2="t2w"), "--target", "FLAIR", "--output", out]
    ran = translate(translator, *args, "-n", 3, "--batch-size", 2, "--seed", 5, "--json")
    assert ran.code == 0, ran.err
    names = ["made", "made_uncertainty", "made_0000", "made_0001", "made_0002"]
    assert ran.json["made"] == [(tmp_path / f"{name}.nii.gz").as_posix() for name in names]
    mean, spread, *samples = (nib.load(tmp_path / f"{name}.nii.gz").get_fdata() for name in names)
    np.testing.assert_allclose(mean, np.mean(samples, axis=0), atol=0.1)
    inside = spread > 0
    assert inside.any()
    np.testing.assert_allclose(spread[inside], np.std(samples, axis=0)[inside], rtol=0.05, atol=0.5)
    one = tmp_path / "one.nii.gz"
    args[-1] = one
    assert translate(translator, *args, "--seed", 7).code == 0
    np.testing.assert_allclose(nib.load(one).get_fdata(), samples[2], atol=0.1)
    args[-1] = tmp_path / "expected.nii.gz"
    assert translate(translator, *args, "--decode", "mean", "--seed", 1).code == 0
    expected = nib.load(args[-1]).get_fdata()
    assert not np.allclose(expected, mean, atol=0.1)


def test_a_patient_is_filled_in(translator: Path, case: Path, tmp_path: Path) -> None:
    file_of(case, "t2f").unlink()
    out = tmp_path / "out"
    ran = translate(translator, "--patient", case, "--output-dir", out, "--json")
    assert ran.code == 0, ran.err
    made = out / case.name / f"{case.name}-t2f.nii.gz"
    assert ran.json["made"] == [made.relative_to(out).as_posix()]
    np.testing.assert_allclose(nib.load(made).affine, nib.load(file_of(case, "t1n")).affine, atol=1e-4)
    entry = json.loads((out / "manifest.json").read_text())["files"][made.relative_to(out).as_posix()]
    assert entry == {"kind": "result", "target": "FLAIR", "sources": ["T1", "T1ce", "T2"]}
    again = translate(translator, "--patient", case, "--output-dir", out, "--json")
    assert again.json["made"] == []
    assert again.json["kept"] == 1
    changed = translate(translator, "--patient", case, "--output-dir", out, "--seed", 3)
    assert changed.code == 2
    assert "other settings" in changed.err


def test_a_folder_of_patients_and_an_example(
    translator: Path, workspace: Workspace, case: Path, tmp_path: Path
) -> None:
    folder = case.parent
    for source in sorted(workspace.cohort.iterdir())[1:3]:
        copytree(source, folder / source.name)
    first, second, third = sorted(folder.iterdir())
    file_of(first, "t1c").unlink()
    file_of(second, "t1n").unlink()
    file_of(second, "t2w").unlink()
    out = tmp_path / "out"
    # The mean, since after four steps of training a sample hardly depends on anything.
    args = ["--patient", folder, "-o", out, "--example", third, "--decode", "mean", "--json"]
    ran = translate(translator, *args)
    assert ran.code == 0, ran.err
    expected = [
        f"{first.name}/{first.name}-t1c",
        f"{second.name}/{second.name}-t1n",
        f"{second.name}/{second.name}-t2w",
    ]
    assert ran.json["made"] == [f"{name}.nii.gz" for name in expected]
    assert ran.json["complete"] == [third.name]
    plain = translate(translator, "--patient", folder, "-o", tmp_path / "plain", "--decode", "mean")
    words = next_of(plain)
    assert words[1:4] == ("data", "check", str(tmp_path / "plain"))
    name = ran.json["made"][0]
    assert not np.array_equal(
        nib.load(out / name).get_fdata(), nib.load(tmp_path / "plain" / name).get_fdata()
    )
    remade = translate(translator, "--patient", third, "-o", tmp_path / "again", "--target", "T2", "--check")
    assert remade.code == 0, remade.err
    assert not (tmp_path / "again").exists()


def test_a_damaged_patient_does_not_stop_the_others(
    translator: Path, workspace: Workspace, case: Path, tmp_path: Path
) -> None:
    other = Path(copytree(sorted(workspace.cohort.iterdir())[1], case.parent / "BraTS-GLI-00099-000"))
    for path in other.iterdir():
        path.rename(path.with_name(path.name.replace(path.name[:19], other.name)))
    file_of(other, "t1n").write_bytes(b"no volume")
    args = ["--patient", case.parent, "--target", "T2", "-o", tmp_path / "out"]
    ran = translate(translator, *args)
    assert ran.code == 1
    assert "1 of 2 translations failed" in ran.err
    assert (tmp_path / "out" / case.name / f"{case.name}-t2w.nii.gz").is_file()


def test_sources_on_other_voxels_are_refused_or_resampled(
    translator: Path, case: Path, tmp_path: Path
) -> None:
    flair = volumes.read(file_of(case, "t2f"))
    coarse = tmp_path / "coarse.nii.gz"
    volumes.write(coarse, flair.data[::2, ::2, ::2], flair.header.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))
    args = [*sources(case, T1="t1n"), "--source", f"FLAIR={coarse}", "--target", "T2"]
    refused = translate(translator, *args, "--output", tmp_path / "made.nii.gz")
    assert refused.code == 1
    assert "coarse.nii.gz" in refused.err
    assert file_of(case, "t1n").name in refused.err
    assert "--resample" in refused.err
    ran = translate(translator, *args, "--output", tmp_path / "made.nii.gz", "--resample")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--target", "T1"], "not among the sources, got T1 as both"),
        (["--target", "PET"], "among T1, T1ce, T2, FLAIR, got PET"),
        (["--target", "T2", "--source", "PET=x.nii.gz"], "got PET"),
        (["--target", "T2", "--source", "T1=x.nii.gz"], "expected one file for T1"),
        (["--target", "T2", "--source", "FLAIR"], "expected NAME=FILE"),
        ([], "expected --target NAME with --source"),
        (["--target", "T2", "--patient", "."], "got both"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(
    translator: Path, case: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    # Files must be there: a path with nothing is refused first.
    args = [arg.replace("x.nii.gz", str(file_of(case, "t2f"))) for arg in args]
    given = [*sources(case, T1="t1n"), "--output", tmp_path / "made.nii.gz", *args]
    ran = translate(translator, *given)
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "made.nii.gz").exists()


def test_models_that_do_not_fit_are_refused(
    translator: Path, workspace: Workspace, case: Path, tmp_path: Path
) -> None:
    given = [*sources(case, T1="t1n"), "--target", "T2", "--output", tmp_path / "made.nii.gz"]
    label = translate(workspace.run2, *given)
    assert label.code == 2
    assert "got 'label_conditional'" in label.err
    other = tmp_path / "other.ckpt"
    from tests.training.tiny import write_autoencoder

    write_autoencoder(other, seed=1)
    mismatch = translate(translator, *given, "--autoencoder", other)
    assert mismatch.code == 1
    assert "its tokens mean something else" in mismatch.err
    wrong = run("prod9-generate", "label", "--model", translator, "-o", tmp_path / "labels")
    assert wrong.code == 2
    assert "prod9 generate translate" in wrong.err
    complete = translate(translator, "--patient", case, "-o", tmp_path / "out")
    assert complete.code == 2
    assert "--target" in complete.err


def test_validate_measures_a_translator(translator: Path) -> None:
    ran = run("prod9-train-transformer", "validate", "--model", translator, "--json")
    assert ran.code == 0, ran.err
    assert {"val/loss", "val/accuracy"} <= ran.json["metrics"].keys()
