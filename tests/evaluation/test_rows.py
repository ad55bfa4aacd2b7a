"""One pass: nothing but rows is kept, and pairs share no volume."""

import weakref

import pytest
import torch

from prod9.errors import DataError
from prod9.evaluation.judges.features import RandomFeatures
from prod9.evaluation.sets.rows import describe_set
from prod9.evaluation.sets.volume_sets import BadFiles, Entry

ENTRIES = [Entry(str(k), str(k), "T1" if k < 9 else "T2", None) for k in range(15)]


class Counting:
    """Makes volumes and counts those that are still there."""

    def __init__(self, *, broken=()):
        self.alive = weakref.WeakSet()
        self.most = 0
        self.broken = broken

    def read(self, entry):
        if entry.case_id in self.broken:
            raise DataError(f"{entry.case_id}: damaged.")
        volume = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(int(entry.case_id)))
        self.alive.add(volume)
        self.most = max(self.most, len(self.alive))
        return volume


def test_a_volume_is_let_go_once_it_is_described():
    source = Counting()
    seen = []
    rows = describe_set(
        ENTRIES, source, [RandomFeatures(seed=0)], BadFiles(skip=False), progress=lambda *at: seen.append(at)
    )
    # The one being read, the pair before it, and one of another modality that found no partner.
    assert source.most <= 4
    assert len(rows) == 15
    assert rows.rows["random-0"].shape == (15, 112)
    assert {name: len(pairs) for name, pairs in rows.pairs.items()} == {"T1": 4, "T2": 3}
    assert seen[-1] == (15, 15)


def test_one_modality():
    rows = describe_set(ENTRIES, Counting(), [RandomFeatures(seed=0)], BadFiles(skip=False))
    own = rows.of("T2")
    assert len(own) == 6
    torch.testing.assert_close(own.rows["random-0"], rows.rows["random-0"][9:])
    assert len(own.all_pairs()) == 3


def test_damaged_ones_are_listed_or_refused():
    bad = BadFiles(skip=True)
    rows = describe_set(ENTRIES, Counting(broken=("3", "12")), [], bad)
    assert [entry.case_id for entry in rows.entries] == [str(k) for k in range(15) if k not in (3, 12)]
    assert [item.reason for item in bad.skipped] == ["3: damaged.", "12: damaged."]
    with pytest.raises(DataError, match=r"3: damaged\. To leave such files out .* --skip-bad"):
        describe_set(ENTRIES, Counting(broken=("3",)), [], BadFiles(skip=False))
    with pytest.raises(DataError, match="at least one readable volume"):
        describe_set(ENTRIES[:2], Counting(broken=("0", "1")), [], BadFiles(skip=True))
