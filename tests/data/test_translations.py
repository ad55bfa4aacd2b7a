"""The store of translated volumes: precision, interruption, damage, and keys per part."""

import pytest
import torch

from prod9.data.stores.translations import VolumeStore, content_key


def volumes(names):
    return {
        name: torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(k))
        for k, name in enumerate(names)
    }


def test_a_volume_comes_back_to_half_a_level(tmp_path):
    store = VolumeStore(tmp_path / "store")
    volume = volumes("a")["a"] * 1.2 - 0.1
    store["a"] = volume
    assert (store["a"] - volume.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert store["a"].dtype == torch.float32
    assert "b" not in store


def test_it_makes_what_is_missing_and_drops_what_is_not_wanted(tmp_path):
    store, given, made, seen = VolumeStore(tmp_path), volumes("abc"), [], []

    def make(key):
        made.append(key)
        return given[key]

    store.fill("ab", make)
    store.fill("bc", make, progress=lambda *at: seen.append(at))
    assert made == ["a", "b", "c"]
    assert seen == [(1, 2), (2, 2)]
    assert "a" not in store
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["b", "c"]


def test_an_interruption_keeps_what_is_done(tmp_path):
    store, given = VolumeStore(tmp_path), volumes("ab")

    def fail_at_b(key):
        if key == "b":
            raise KeyboardInterrupt
        return given[key]

    with pytest.raises(KeyboardInterrupt):
        store.fill("ab", fail_at_b)
    assert "a" in store
    assert "b" not in store


def test_a_damaged_file_is_made_anew(tmp_path):
    store, given = VolumeStore(tmp_path), volumes("a")
    store["a"] = given["a"]
    path = tmp_path / "a.npy"
    path.write_bytes(path.read_bytes()[:-7])
    assert "a" not in store
    store.fill("a", given.__getitem__)
    assert (store["a"] - given["a"]).abs().max() <= 0.5 / 255 + 1e-6


def test_keys_tell_parts_apart():
    assert content_key("a", "b") != content_key("b", "a")
    assert content_key("a", ["T1", "T2"]) != content_key("a", ["T1"])
    assert content_key("a", 1) == content_key("a", 1)
