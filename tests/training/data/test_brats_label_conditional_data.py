"""BraTSLabelConditionalDataModule: tokens, labels and foreground of whole volumes."""

from pathlib import Path

import pytest
import torch

from prod9.data.datasets.tokens import LabelledTokens
from tests.fixtures import write_brats_tree
from tests.training.data.test_brats_data import Stage2


@pytest.fixture
def stage2(tmp_path: Path) -> Stage2:
    write_brats_tree(tmp_path / "cohort", 8)
    return Stage2(tmp_path / "cohort", tmp_path)


def test_a_batch(stage2: Stage2) -> None:
    data = stage2.make()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["label"].shape == (4,)
    assert batch["label"].dtype == batch["target_indices"].dtype == torch.int64
    assert batch["target_indices"].shape == batch["foreground"].shape == (4, 4, 4, 4)
    assert batch["foreground"].dtype == torch.bool
    assert 0 < batch["foreground"].float().mean() < 1
    assert len(batch["case_id"]) == len(batch["modality"]) == 4


def test_tokens_are_those_of_the_volume_and_its_mirror(stage2: Stage2) -> None:
    data = stage2.make()
    data.setup("fit")
    dataset = data._dataset("train")
    assert isinstance(dataset, LabelledTokens)
    volumes = data._builder.build_brats_stage1(data._cache("train"), train=False)
    assert len(dataset) == 2 * len(volumes)
    for case in range(4):
        for m in range(4):
            volume = volumes[case * 4 + m]["image"][None]
            plain, mirror = dataset[case * 8 + m], dataset[case * 8 + 4 + m]
            assert torch.equal(plain["target_indices"], stage2.encode(volume).tokens[0])
            assert torch.equal(mirror["target_indices"], stage2.encode(volume.flip(2)).tokens[0])
            assert plain["label"] == mirror["label"] == m


def test_a_mirror_is_an_option_and_only_for_training(stage2: Stage2) -> None:
    data = stage2.make(data={"store_flips": False})
    data.setup(None)
    assert len(data._dataset("train")) == 16  # type: ignore[arg-type]
    with_flips = stage2.make()
    with_flips.setup(None)
    assert len(with_flips._dataset("train")) == 32  # type: ignore[arg-type]
    assert len(with_flips._dataset("val")) == 8  # type: ignore[arg-type]


def test_each_volume_is_encoded_once(stage2: Stage2) -> None:
    for _ in range(2):
        stage2.make().setup("fit")
    assert stage2.encoded == 4 * 8 + 2 * 4


def test_ones_own_labels(stage2: Stage2) -> None:
    labels = {"T1": 3, "T1ce": 2, "T2": 1, "FLAIR": 0}
    stage2.make().setup("fit")
    data = stage2.make(data={"label_map": labels})
    data.setup("fit")
    assert [int(data._dataset("val")[i]["label"]) for i in range(4)] == [3, 2, 1, 0]
    assert stage2.encoded == 4 * 8 + 2 * 4


def test_a_resumed_loader_gives_the_tail(stage2: Stage2) -> None:
    data = stage2.make()
    data.setup("fit")
    whole = [batch["target_indices"] for batch in data.train_dataloader()]
    data.set_start_step(4)
    tail = [batch["target_indices"] for batch in data.train_dataloader()]
    assert len(whole) == 6
    assert all(torch.equal(a, b) for a, b in zip(tail, whole[4:], strict=True))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_loader_processes_change_nothing(stage2: Stage2) -> None:
    loaded = []
    for workers in (0, 2):
        data = stage2.make(data={"num_workers": workers})
        data.setup("fit")
        loaded.append([batch["target_indices"] for batch in data.train_dataloader()])
    assert all(torch.equal(a, b) for a, b in zip(*loaded, strict=True))
