"""Damaged and hostile lists, npz files, split files and names: a result or one error of ours, never another."""

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prod9.data.checking.medmnist import check_medmnist3d
from prod9.data.layouts.find import find_cases, scan_dataset
from prod9.data.layouts.medmnist import open_medmnist3d
from prod9.data.layouts.names import identify, parse_modality, parse_name, says_other, shows_labels
from prod9.data.layouts.scan import wrong_name
from prod9.data.layouts.visits import look_alikes, visit_groups
from prod9.data.splits import Split, resolve_split
from prod9.errors import ConfigError, DataError
from tests.data.trees import write_datalist, write_json_list, write_msd, write_nnunet
from tests.fixtures import write_medmnist3d

TEXT = st.text(st.characters(), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ours(call: Callable[[], object], path: Path | None = None) -> None:
    """Run ``call``; only errors of prod9 may come, naming ``path``."""
    message = ""
    try:
        call()
    except (DataError, ConfigError) as error:
        message = str(error)
    assert not message or path is None or path.name in message


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return ``content`` with bytes changed, cut out, doubled or added."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0 and data:
            data[min(place, len(data) - 1)] = rng.randrange(256)
        elif kind == 1:
            del data[place : place + rng.randint(1, 40)]
        elif kind == 2:
            data[place:place] = data[place : place + rng.randint(1, 40)]
        else:
            data[place:place] = bytes(
                rng.choice(b"\"'[]{},;:\\\n\x00\xff/.09") for _ in range(rng.randint(1, 6))
            )
    return bytes(data)


# ---- lists ----


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A list of each kind with its volumes."""
    root = tmp_path_factory.mktemp("lists")
    found = {"csv": write_datalist(root / "csv", 2), "json": write_json_list(root / "json", 2)}
    for name, writer in (("msd", write_msd), ("nnunet", write_nnunet)):
        writer(root / name, 2)
        found[name] = root / name / "dataset.json"
    return found


@pytest.mark.parametrize("kind", ["csv", "json", "msd", "nnunet"])
def test_r16_damaged_lists(trees: dict[str, Path], kind: str) -> None:
    path, rng = trees[kind], random.Random(16)
    whole = path.read_bytes()
    root = path.parent if path.name == "dataset.json" else path
    try:
        for _ in range(150):
            path.write_bytes(damaged(whole, rng))
            ours(lambda: find_cases(root, modalities=["T1"]))
    finally:
        path.write_bytes(whole)


@QUICK
@given(
    content=JSON
    | st.fixed_dictionaries({"training": JSON}, optional={"labels": JSON, "modality": JSON, "test": JSON})
)
@example(content={"training": [{"image": "x" * 300}]})
@example(content={"training": [{"image": "a_t1.nii", "label": "y" * 300}]})
@example(content={"labels": {"²": "x"}, "training": ["a_t1.nii"]})
@example(content={"labels": {"9" * 5000: "x"}, "training": ["a_t1.nii"]})
def test_r16_json_of_any_content(tmp_path: Path, content: object) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    ours(lambda: find_cases(path, modalities=["T1"]), path)
    (tmp_path / "set/imagesTr").mkdir(parents=True, exist_ok=True)
    (tmp_path / "set/imagesTr/a_0000.nii.gz").touch()
    (tmp_path / "set/dataset.json").write_text(json.dumps(content), encoding="utf-8")
    for layout in ("msd", "nnunet"):
        ours(lambda layout=layout: scan_dataset(tmp_path / "set", layout=layout))


@pytest.mark.parametrize(
    "text", ["[" * 100000, "{" * 100000, '{"training": ' + "[" * 100000, "", "\xff", "nul", "1e999"]
)
def test_r17_json_that_nests_or_ends(tmp_path: Path, text: str) -> None:
    for name in ("list.json", "split.json"):
        (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"list\.json"):
        find_cases(tmp_path / "list.json")
    with pytest.raises(DataError, match=r"split\.json"):
        Split.load(tmp_path / "split.json")


@QUICK
@given(rows=st.lists(st.lists(TEXT, max_size=5), max_size=4), delimiter=st.sampled_from(",;\t|"))
def test_r16_tables_of_any_text(tmp_path: Path, rows: list[list[str]], delimiter: str) -> None:
    path = tmp_path / "list.csv"
    lines = ["case,T1,seg".replace(",", delimiter), *(delimiter.join(["x_t1.nii", *row]) for row in rows)]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    ours(lambda: find_cases(path, modalities=["T1"]), path)


# ---- split files ----


@QUICK
@given(
    content=JSON
    | st.fixed_dictionaries({"train": JSON, "val": JSON, "test": JSON}, optional={"settings": JSON})
)
@example(content={"train": "abc", "val": [], "test": []})
@example(content={"train": [], "val": [], "test": [], "settings": ["seed"]})
@example(content={"train": ["a"], "val": ["a"], "test": []})
@example(content={"train": [], "val": [], "test": [], "format": 99})
def test_r17_split_files_of_any_content(tmp_path: Path, content: object) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    ours(lambda: Split.load(path), path)
    wanted = {"train": 1.0, "val": 0.0, "test": 0.0, "seed": 0, "file": None}
    ours(lambda: resolve_split([], path, settings=wanted), path)


def test_r17_a_split_of_letters_is_none(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text('{"train": "abc", "val": [], "test": []}')
    with pytest.raises(DataError, match="expected lists of patient ids"):
        Split.load(path)


# ---- names ----


@settings(max_examples=300, deadline=None)
@given(
    name=st.text(max_size=60), folder=st.text(max_size=20), above=st.lists(st.text(max_size=20), max_size=3)
)
def test_r16_any_name_is_read(name: str, folder: str, above: list[str]) -> None:
    parsed = parse_name(name, folder=folder, above=above)
    assert parsed is None or parsed.identity.patient_id or not (name and folder)
    assert parse_modality(name) is None or parsed is None or parse_modality(name) == parsed.kind
    assert isinstance(shows_labels(name), bool)
    assert isinstance(says_other(name), bool)
    identity = identify(name)
    visit_groups([(identity.case_id, identity.patient_id)])
    look_alikes([name, folder, *above])


@pytest.mark.parametrize(
    "name", ["a" * 4000, "P1_" * 1500, "1_" * 2000, "tp1_" * 1000, "2019-01-02_" * 300, "_-. " * 900]
)
def test_r16_long_names_are_read_in_no_time(name: str) -> None:
    identify(name)
    parse_name(f"{name}_t1.nii.gz", folder="x", above=["y"])
    look_alikes([name, f"{name}1"])


@given(st.text(max_size=260))
def test_r8_a_good_name_is_a_file_name(name: str) -> None:
    if wrong_name(name, "case", Path("list.csv")) is None:
        assert Path(name).name == name
        assert len(f".tmp-012345678901-{name}_uncertainty.nii.gz".encode()) <= 255
        assert name.isprintable() or not any(ord(letter) < 32 for letter in name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "...", " ", "a/b", "a\\b", "/a", "../a", "a\0", "a\n", "\x1b[31m", "a\x7f", "a\u202eb", "a\u2028b",
     "\ud800", "x" * 201, "é" * 101, "CON", "nul", "com1", "LPT9.txt", ".hidden"],
)  # fmt: skip
def test_r8_names_that_no_result_can_have(name: str) -> None:
    message = wrong_name(name, "case", Path("list.csv"))
    assert message is not None
    assert message.startswith("list.csv: expected the name of a case")
    assert message.isprintable()


# ---- npz files ----


def test_r15_damaged_npz_files(tmp_path: Path) -> None:
    path = write_medmnist3d(tmp_path, (2, 1, 1), size=28)
    whole, rng = path.read_bytes(), random.Random(15)
    directory = whole.rindex(b"PK\x01\x02")  # damage in the directory and in the headers says most

    def read() -> None:
        file = open_medmnist3d(tmp_path, "organmnist3d", 28)
        for part in ("train", "val", "test"):
            file.read(part, 11)

    for k in range(400):
        if k % 2:
            start = rng.choice([0, directory - 200, len(whole) - 300])
            path.write_bytes(whole[:start] + damaged(whole[start : start + 300], rng) + whole[start + 300 :])
        else:
            path.write_bytes(damaged(whole, rng))
        ours(read, path)
    ours(lambda: check_medmnist3d(path, classes={"organmnist3d": ("a",) * 11}, deep=True))


def npz(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)


def array(shape: tuple[int, ...], text: str | None = None, content: bytes = b"") -> bytes:
    """Return an array file that claims ``shape``, with another header text if given."""
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    data = stream.getvalue()
    if text is not None:
        padded = text.encode().ljust(118) + b"\n"
        data = data[:8] + len(padded).to_bytes(2, "little") + padded
    return data + content


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (array((10**6, 28, 28, 28)), r"claims 21952000000 bytes"),
        (array((2**40,)), "claims"),
        (array((-1, 28, 28, 28)), "holds"),
        (array((1,), text="{'descr': '|u1', 'fortran_order': False, 'shape': ("), "MedMNIST3D file"),
        (array((1,), text="{None: 1}"), "MedMNIST3D file"),
        (array((1,), text="[" * 100), "MedMNIST3D file"),
        (b"\x93NUMPY\x01\x00", "MedMNIST3D file"),
        (b"", "MedMNIST3D file"),
    ],
)
def test_r24_an_npz_file_claims_no_more_than_it_can_hold(tmp_path: Path, entry: bytes, message: str) -> None:
    npz(tmp_path / "organmnist3d.npz", {"train_images": entry})
    with pytest.raises(DataError, match=message) as caught:
        open_medmnist3d(tmp_path, "organmnist3d", 28)
    assert "organmnist3d.npz" in str(caught.value)
    assert "download it again" in str(caught.value)


def test_r24_what_does_not_fit_into_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prod9.data.layouts import medmnist
    from prod9.system.machine import Memory

    write_medmnist3d(tmp_path, (2, 1, 1))
    monkeypatch.setattr(medmnist, "memory", lambda: Memory(total=1 << 20, available=1 << 14))
    with pytest.raises(DataError, match=r"fits into memory, got train_images.npy takes .* are free"):
        open_medmnist3d(tmp_path, "organmnist3d", 28)


def test_r15_the_same_array_twice(tmp_path: Path) -> None:
    path = write_medmnist3d(tmp_path, (2, 1, 1))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("val_labels.npy", array((1, 1), content=b"\0"))
    with pytest.raises(DataError, match="val_labels is there twice"):
        open_medmnist3d(tmp_path, "organmnist3d", 28)
