"""ControlNetDataModule: the base's samples, each with its own segmentation, mirrored alike."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prod9.data.splits import Split
from prod9.errors import ConfigError
from prod9.training.data.control import ControlNetDataModule
from tests.fixtures import write_brats_tree
from tests.training.data.test_brats_data import Stage2
from tests.training.tiny_control import control_config


class Stage3:
    """Makes data modules over eight patients."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "cohort"
        write_brats_tree(self.root, 8)
        self.stage2 = Stage2(self.root, folder)

    def make(
        self, *, kind: str = "label_conditional", base_split: Split | None = None, **sections: Any
    ) -> ControlNetDataModule:
        config = control_config(self.root, self.folder / "run", self.folder / "base.ckpt", **sections)
        inner = self.stage2.make(kind=kind)
        return ControlNetDataModule(config, inner=inner, base_split=base_split)


@pytest.fixture
def stage3(tmp_path: Path) -> Stage3:
    return Stage3(tmp_path)


@pytest.mark.parametrize("kind", ["label_conditional", "decoder", "single_stream"])
def test_samples_are_those_of_the_base_and_a_segmentation(stage3: Stage3, kind: str) -> None:
    data = stage3.make(kind=kind)
    data.setup("fit")
    dataset, inner = data._dataset("train"), data._inner._dataset("train")
    assert len(dataset) == len(inner) == 4 * 4 * 2  # type: ignore[arg-type]
    item, plain = dataset[5], inner[5]
    assert set(item) == {*plain, "seg", "has_seg"}
    assert torch.equal(item["target_indices"], plain["target_indices"])
    batch = next(iter(data.train_dataloader()))
    assert batch["seg"].shape == (4, 16, 16, 16)
    assert batch["seg"].dtype == torch.uint8
    assert batch["has_seg"].all()


def test_a_segmentation_is_that_of_the_volume_mirrored_with_it(stage3: Stage3) -> None:
    data = stage3.make()
    data.setup("fit")
    dataset, cases = data._dataset("train"), data._inner._cache("train")
    for case in range(4):
        seg = torch.from_numpy(cases[case].seg)
        for place in range(4):
            item, mirror = dataset[case * 8 + place], dataset[case * 8 + 4 + place]
            assert item["case_id"] == mirror["case_id"] == cases.cases[case].case_id
            assert torch.equal(item["seg"], seg)
            assert torch.equal(mirror["seg"], seg.flip(0))
            # Tokens of a brain and of its mirror image differ; only that goes with a mirrored segmentation.
            assert not torch.equal(item["target_indices"], mirror["target_indices"])


def test_a_resumed_loader_gives_the_tail(stage3: Stage3) -> None:
    data = stage3.make()
    data.setup("fit")
    whole = [batch["seg"] for batch in data.train_dataloader()]
    data.set_start_step(4)
    tail = [batch["seg"] for batch in data.train_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(tail, whole[4:], strict=True))


def test_a_case_without_segmentation_stays_and_says_so(stage3: Stage3) -> None:
    for path in sorted(stage3.root.rglob("*-seg.nii.gz"))[::2]:
        path.unlink()
    data = stage3.make()
    data.setup("fit")
    items = [data._dataset("train")[i] for i in range(0, 32, 4)]
    assert {bool(item["has_seg"]) for item in items} == {True, False}
    assert all(item["has_seg"] == item["seg"].any() for item in items)


def test_without_any_segmentation_only_labels_can_be_learnt(stage3: Stage3) -> None:
    for path in stage3.root.rglob("*-seg.nii.gz"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"condition\.condition_type.*no case of the train split"):
        stage3.make().setup("fit")
    stage3.make(condition={"condition_type": "label"}).setup("fit")


def test_the_base_may_not_have_seen_held_out_patients(stage3: Stage3) -> None:
    split = stage3.make().split
    leaky = Split(split.train + split.test[:1], split.val, split.test[1:])
    with pytest.raises(ConfigError, match=rf"trained on 1 that this run holds out \({split.test[0]}\)"):
        stage3.make(base_split=leaky).setup("fit")
    stage3.make(base_split=split).setup("fit")


def test_segmentations_lie_beside_the_tokens(stage3: Stage3, tmp_path: Path) -> None:
    stage3.make(data={"store_dir": str(tmp_path / "shared")}).setup("fit")
    assert len(list((tmp_path / "shared" / "segmentations").glob("*.npz"))) == 6
