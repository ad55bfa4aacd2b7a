"""The token store: encoded once, never stale, resumable."""

import json
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prod9.data.stores import latents, shards
from prod9.data.stores.latents import (
    Encoded,
    StoreItem,
    TokenStore,
    build_token_store,
    find_in_store,
    foreground_of,
)
from prod9.errors import DataError

GRID = (8, 8, 8)


class Encoder:
    """Means of 2³ patches as tokens; counts what it encodes and may fail after some batches."""

    def __init__(self, *, fail_after: int | None = None, scale: int = 1000) -> None:
        self.seen = 0
        self.fail_after = fail_after
        self.scale = scale

    def __call__(self, volumes: Tensor) -> Encoded:
        if self.fail_after is not None and self.seen >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += len(volumes)
        means = torch.nn.functional.avg_pool3d(volumes, 2)
        return Encoded(torch.cat([means, -means], 1), (means[:, 0] * self.scale).long())


def volume(number: int) -> Tensor:
    x = torch.rand(1, *GRID, generator=torch.Generator().manual_seed(number))
    x[:, :, :, 4:] = 0
    return x


def make_items(
    count: int, *, flips: Sequence[bool] = (False,), content: Callable[[int], str] = str
) -> list[StoreItem]:
    return [
        StoreItem(f"case{i}", "T1", 0, flipped, content(i), load=lambda i=i: volume(i))
        for i in range(count)
        for flipped in flips
    ]


def build(directory: Path, items: list[StoreItem], encoder: Encoder, **changes: object) -> TokenStore:
    return build_token_store(directory, items, encoder, **({"key": "e1", "grid": GRID} | changes))  # type: ignore[arg-type]


def test_tokens_are_those_of_the_encoder(tmp_path: Path) -> None:
    items = make_items(5)
    store = build(tmp_path, items, Encoder(), batch_size=2)
    assert len(store) == 5
    assert store.latent(0).shape[1:] == (4, 4, 4)
    for i in range(5):
        item = store[i]
        assert item["indices"].dtype == torch.int64
        encoded = Encoder()(volume(i)[None])
        assert torch.equal(item["indices"], encoded.tokens[0])
        assert torch.equal(store.latent(i), encoded.latents[0].half().float())
        assert item["foreground"].dtype == torch.bool
        assert torch.equal(item["foreground"], torch.arange(4).expand(4, 4, 4) < 2)
        assert (item["case_id"], item["modality"], item["label"], item["flipped"]) == (
            f"case{i}",
            "T1",
            0,
            False,
        )
    assert store.max_index == max(int(store[i]["indices"].max()) for i in range(5))


def test_a_mirror_is_along_the_left_right_axis(tmp_path: Path) -> None:
    store = build(tmp_path, make_items(1, flips=(False, True)), Encoder())
    assert torch.equal(store[1]["indices"], store[0]["indices"].flip(0))
    assert store[1]["flipped"]


@pytest.mark.parametrize(("scale", "dtype"), [(1000, "uint16"), (100_000, "int32")])
def test_large_vocabularies_keep_their_indices(tmp_path: Path, scale: int, dtype: str) -> None:
    store = build(tmp_path, make_items(2), Encoder(scale=scale))
    assert torch.equal(store[1]["indices"], Encoder(scale=scale)(volume(1)[None]).tokens[0])
    assert str(store._array(store._rows[0].shard, "tokens").dtype) == dtype


def test_several_may_fill_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_SHARD_BYTES", 1)  # a shard each, so that they write in turn
    everything = make_items(24)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: build(tmp_path, everything[k::4], Encoder()), range(4)))
    encoder = Encoder()
    store = build(tmp_path, everything, encoder)
    assert encoder.seen == 0, "no one lost what another wrote"
    assert latents.verify_store(tmp_path).items == len(store) == 24
    assert torch.equal(store[7]["indices"], Encoder()(volume(7)[None]).tokens[0])


def test_the_same_volumes_twice_at_a_time(tmp_path: Path) -> None:
    class Meanwhile(Encoder):
        def __call__(self, volumes: Tensor) -> Encoded:
            if not self.seen:
                build(tmp_path, make_items(3), Encoder())
            return super().__call__(volumes)

    store = build(tmp_path, make_items(3), Meanwhile())
    report = latents.verify_store(tmp_path)
    assert (report.items, report.damaged) == (3, ())
    assert torch.equal(store[2]["indices"], Encoder()(volume(2)[None]).tokens[0])


class Futures:
    """Encodes when asked for the result, and counts how many wait."""

    num_ahead = 3

    def __init__(self) -> None:
        self.encoder, self.waiting, self.most = Encoder(), 0, 0

    def submit(self, volumes: Tensor) -> Tensor:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        return volumes

    def result(self, future: Tensor) -> Encoded:
        self.waiting -= 1
        return self.encoder(future)


def test_a_parallel_encoder_is_kept_busy_and_order_holds(tmp_path: Path) -> None:
    encoder = Futures()
    store = build_token_store(tmp_path, make_items(9), encoder, key="e1", grid=GRID)
    assert encoder.most == 4
    for k in range(9):
        assert torch.equal(store[k]["indices"], Encoder()(volume(k)[None]).tokens[0])


def test_a_second_build_encodes_nothing_and_relabels(tmp_path: Path) -> None:
    build(tmp_path, make_items(4), Encoder())
    encoder = Encoder()
    items = [StoreItem(i.case_id, i.modality, 3, i.flipped, i.content, i.load) for i in make_items(4)][::-1]
    store = build(tmp_path, items, encoder)
    assert encoder.seen == 0
    assert [store[i]["case_id"] for i in range(4)] == ["case3", "case2", "case1", "case0"]
    assert store[0]["label"] == 3


def test_only_stale_items_are_encoded_again(tmp_path: Path) -> None:
    build(tmp_path, make_items(4), Encoder())
    encoder = Encoder()
    build(tmp_path, make_items(4, content=lambda i: f"{i}{'new' if i == 2 else ''}"), encoder)
    assert encoder.seen == 1
    assert find_in_store(tmp_path, make_items(4, content=lambda i: f"new{i}"), key="e1", grid=GRID) is None


@pytest.mark.parametrize("change", [{"key": "e2"}, {"grid": (8, 8, 4)}])
def test_another_encoder_or_grid_finds_nothing_and_leaves_nothing(
    tmp_path: Path, change: dict[str, object]
) -> None:
    items = make_items(3)
    build(tmp_path, items, Encoder())
    assert find_in_store(tmp_path, items, **({"key": "e1", "grid": GRID} | change)) is None  # type: ignore[arg-type]
    if "grid" in change:
        items = [StoreItem(i.case_id, "T1", 0, False, i.content, lambda: volume(0)[..., :4]) for i in items]
    encoder = Encoder()
    with pytest.raises(DataError, match="another run may be reading"):
        build(tmp_path, items, encoder, **change)
    build(tmp_path, items, encoder, overwrite=True, **change)
    assert encoder.seen == 3
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_parts_share_a_store(tmp_path: Path) -> None:
    train, val = make_items(5)[:3], make_items(5)[3:]
    build(tmp_path, train, Encoder())
    build(tmp_path, val, Encoder())
    found = find_in_store(tmp_path, train, key="e1", grid=GRID)
    assert found is not None
    assert len(found) == 3
    assert len(TokenStore.open(tmp_path)) == 5


@settings(max_examples=10)
@given(stop=st.integers(0, 6), shard_bytes=st.sampled_from([1, 600, 10**9]))
def test_an_interrupted_build_goes_on(
    tmp_path_factory: pytest.TempPathFactory, stop: int, shard_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_SHARD_BYTES", shard_bytes)
        with pytest.raises(KeyboardInterrupt):
            build(directory, make_items(7), Encoder(fail_after=stop))
        encoder = Encoder()
        store = build(directory, make_items(7), encoder)
    assert encoder.seen == 7 - stop
    assert all(torch.equal(store[i]["indices"], Encoder()(volume(i)[None]).tokens[0]) for i in range(7))


def test_a_kill_between_shard_and_manifest_loses_only_the_shard(tmp_path: Path) -> None:
    build(tmp_path, make_items(2), Encoder())
    (tmp_path / "manifest.json").unlink()
    encoder = Encoder()
    store = build(tmp_path, make_items(2), encoder)
    assert encoder.seen == 2
    assert len(store) == 2


@pytest.mark.parametrize("fault", ["flipped bit", "truncated", "missing"])
def test_a_damaged_shard_is_noticed(tmp_path: Path, fault: str) -> None:
    build(tmp_path, make_items(3), Encoder())
    shard = next(tmp_path.glob("*.tokens.npy"))
    if fault == "flipped bit":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    elif fault == "truncated":
        os.truncate(shard, 100)
    else:
        shard.unlink()
    with pytest.raises(DataError, match="missing or damaged; encode again"):
        TokenStore.open(tmp_path)
    encoder = Encoder()
    store = build(tmp_path, make_items(3), encoder)
    assert encoder.seen == 3
    assert torch.equal(store[2]["indices"], Encoder()(volume(2)[None]).tokens[0])


def test_a_manifest_of_another_format_is_not_believed(tmp_path: Path) -> None:
    build(tmp_path, make_items(2), Encoder())
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))
    assert find_in_store(tmp_path, make_items(2), key="e1", grid=GRID) is None
    with pytest.raises(DataError, match="expected a token store"):
        TokenStore.open(tmp_path)


def test_progress_counts_what_was_there(tmp_path: Path) -> None:
    build(tmp_path, make_items(2), Encoder())
    seen: list[tuple[int, int]] = []
    build(tmp_path, make_items(4), Encoder(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 4), (4, 4)]


def test_a_pickled_store_carries_no_tokens(tmp_path: Path) -> None:
    store = build(tmp_path, make_items(30), Encoder())
    store[0]
    copy = pickle.loads(pickle.dumps(store))
    assert copy._arrays == {}
    assert torch.equal(copy[7]["indices"], store[7]["indices"])


def test_a_volume_off_the_grid_is_refused(tmp_path: Path) -> None:
    item = StoreItem("case", "T1", 0, False, "c", lambda: torch.zeros(1, 8, 8, 9))
    with pytest.raises(ValueError, match=r"case: expected a volume of \(1, 8, 8, 8\), got \(1, 8, 8, 9\)"):
        build(tmp_path, [item], Encoder())


def test_a_token_grid_that_does_not_divide_the_volume_is_refused() -> None:
    with pytest.raises(ValueError, match="expected divisors"):
        foreground_of(torch.zeros(1, 1, 8, 8, 8), (3, 4, 4))


def test_an_encoder_without_tokens_keeps_latents_alone(tmp_path: Path) -> None:
    store = build_token_store(
        tmp_path, make_items(2), lambda x: Encoded(x[:, :, ::2, ::2, ::2]), key="kl", grid=GRID
    )
    assert not list(tmp_path.glob("*.tokens.npy"))
    assert store.latent(0).shape[1:] == (4, 4, 4)
    assert torch.equal(store.latent(1), volume(1)[:, ::2, ::2, ::2].half().float())
    assert find_in_store(tmp_path, make_items(2), key="kl", grid=GRID) is not None
