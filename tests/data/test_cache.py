"""Each case is preprocessed once, and an old entry is never served for new content."""

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from prod9.data.layouts.find import Case, find_cases
from prod9.data.preprocessing import CaseVolumes
from prod9.data.stores.cache import CaseCache, ContentHashes
from prod9.errors import DataError

Make = Callable[..., Any]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cases as they are preprocessed."""
    from prod9.data.preprocessing import Preprocessor

    seen: list[str] = []
    preprocess = Preprocessor.__call__

    def count(self: Preprocessor, case: Case) -> CaseVolumes:
        seen.append(case.case_id)
        return preprocess(self, case)

    monkeypatch.setattr(Preprocessor, "__call__", count)
    return seen


def same(a: CaseVolumes, b: CaseVolumes) -> bool:
    assert a.seg is not None
    assert b.seg is not None
    return (
        np.array_equal(a.images, b.images)
        and np.array_equal(a.seg, b.seg)
        and np.array_equal(a.affine, b.affine)
        and a.extent == b.extent
    )


@pytest.mark.parametrize("mode", ["none", "memory", "disk"])
def test_all_modes_give_the_same_volumes(cohort: Path, make_builder: Make, mode: str) -> None:
    cases = find_cases(cohort)
    fresh = make_builder(cache="none").build_cases(cases)
    cache = make_builder(cache=mode).build_cases(cases)
    cache.warm(num_threads=2)
    assert len(cache) == 3
    assert all(same(cache[i], fresh[i]) for i in range(3))


@pytest.mark.parametrize(("mode", "times"), [("none", 2), ("memory", 1), ("disk", 1)])
def test_how_often_a_case_is_preprocessed(
    cohort: Path, make_builder: Make, counted: list[str], mode: str, times: int
) -> None:
    cache = make_builder(cache=mode).build_cases(find_cases(cohort))
    for i in (0, 0, 1, 2, 0, 1, 2):
        cache[i]
    assert all(counted.count(case.case_id) == times for case in cache.cases)


def test_the_disk_serves_the_next_run(
    cohort: Path, make_builder: Make, counted: list[str], tmp_path: Path
) -> None:
    cases = find_cases(cohort)
    make_builder(cache="disk").build_cases(cases).warm()
    again = make_builder(cache="disk").build_cases(cases)
    again.warm()
    assert len(counted) == 3
    assert isinstance(again[0].images.base, np.memmap | np.ndarray)
    assert not list(cohort.rglob("*.npy"))
    assert not list(tmp_path.rglob(".tmp-*"))


def test_edited_files_and_other_options_are_not_served_old_entries(
    cohort: Path, make_builder: Make, counted: list[str]
) -> None:
    cases = find_cases(cohort)
    make_builder(cache="disk").build_cases(cases).warm()
    path = cases[1].images["T1"]
    image = nib.load(path)
    data = np.asarray(image.dataobj).copy()
    data[8, 9, 7] += 1
    nib.save(nib.Nifti1Image(data, image.affine), path)
    make_builder(cache="disk").build_cases(cases).warm()
    assert counted[3:] == [cases[1].case_id]
    make_builder(cache="disk", grid=(12, 12, 12)).build_cases(cases).warm()
    assert len(counted) == 7


@pytest.mark.parametrize("fault", ["truncated", "no description", "garbled description"])
def test_a_damaged_entry_is_made_anew(cohort: Path, make_builder: Make, tmp_path: Path, fault: str) -> None:
    cases = find_cases(cohort)[:1]
    before = make_builder(cache="none").build_cases(cases)[0]
    make_builder(cache="disk").build_cases(cases).warm()
    (entry,) = (tmp_path / "cache").glob("*.npy")
    if fault == "truncated":
        os.truncate(entry, entry.stat().st_size // 2)
    elif fault == "no description":
        entry.with_suffix(".json").unlink()
    else:
        entry.with_suffix(".json").write_text("{")
    assert same(make_builder(cache="disk").build_cases(cases)[0], before)


def test_warming_reports_each_case_and_names_a_bad_file(cohort: Path, make_builder: Make) -> None:
    cases = find_cases(cohort)
    seen: list[tuple[int, int]] = []
    make_builder().build_cases(cases).warm(
        progress=lambda done, total: seen.append((done, total)), num_threads=2
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    cases[2].images["T2"].write_bytes(b"no volume")
    with pytest.raises(DataError, match=cases[2].images["T2"].name):
        make_builder().build_cases(cases).warm(num_threads=2)


def test_datasets_travel_to_spawned_loader_processes(cohort: Path, make_builder: Make) -> None:
    builder = make_builder(cache="disk", spacing=(4.0, 4.0, 4.0), crop_size=(8, 8, 8), augment={"flip": 0.5})
    cases = builder.build_cases(find_cases(cohort))
    for dataset in (builder.build_brats_stage1(cases, train=True), builder.build_brats_stage2(cases)):
        dataset[0]
        content = pickle.dumps(dataset)
        assert len(content) < 40_000
        assert pickle.loads(content)[1]["case_id"] == dataset[1]["case_id"]


def test_a_disk_cache_needs_a_place() -> None:
    with pytest.raises(ValueError, match="directory and a key"):
        CaseCache(cases=[], preprocess=lambda _: None, mode="disk")  # type: ignore[arg-type, return-value]


class TestContentHashes:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "a.bin"
        path.write_bytes(b"one")
        self.age(path, 100)
        return path

    @staticmethod
    def age(path: Path, seconds: float) -> None:
        stamp = time.time() - seconds
        os.utime(path, (stamp, stamp))

    def test_a_settled_file_is_read_once(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = ContentHashes(tmp_path / "index.json")
        digest = first.digest(file)
        first.save()
        monkeypatch.setattr("prod9.data.stores.cache.sha256", lambda _: pytest.fail("read again"))
        assert ContentHashes(tmp_path / "index.json").digest(file) == digest

    def test_a_change_is_seen(self, file: Path, tmp_path: Path) -> None:
        hashes = ContentHashes(tmp_path / "index.json")
        before = hashes.digest(file)
        file.write_bytes(b"two")
        assert hashes.digest(file) != before

    def test_a_young_file_is_read_every_time(self, file: Path) -> None:
        hashes = ContentHashes(None)
        file.write_bytes(b"two")
        before, stamp = hashes.digest(file), file.stat()
        file.write_bytes(b"six")
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # same size, same tick
        assert hashes.digest(file) != before

    def test_nothing_new_writes_nothing(self, tmp_path: Path) -> None:
        ContentHashes(tmp_path / "index.json").save()
        assert not (tmp_path / "index.json").exists()

    def test_a_damaged_index_is_only_a_lost_shortcut(self, file: Path, tmp_path: Path) -> None:
        index = tmp_path / "index.json"
        index.write_text("{")
        hashes = ContentHashes(index)
        hashes.digest(file)
        hashes.save()
        assert list(json.loads(index.read_text())) == [str(file)]
