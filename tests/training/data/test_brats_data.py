"""BraTSDataModule on tiny files: both phases of stage 1, resuming, ranks, refusals, and pairs for stage 2."""

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prod9.autoencoder.factory import build_autoencoder
from prod9.data.splits import PARTS, Split
from prod9.data.stores.latents import Encoded
from prod9.errors import ConfigError, DataError
from prod9.training.data.brats import AbstractBraTSDataModule, BraTSDataModule, axis_aligned
from prod9.training.data.encoded import EncodedSource
from prod9.training.data.in_context import BraTSInContextDataModule
from prod9.training.data.label_conditional import BraTSLabelConditionalDataModule
from prod9.training.data.pairs import BraTSTranslationDataModule
from tests.fixtures import write_brats_tree
from tests.training.tiny import AUTOENCODER, autoencoder_config, transformer_config

SHARES = {"train": 0.5, "val": 0.25, "test": 0.25}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight patients."""
    write_brats_tree(tmp_path / "cohort", 8)
    return tmp_path / "cohort"


@pytest.fixture
def make_stage1(root: Path, tmp_path: Path) -> Callable[..., BraTSDataModule]:
    """Return ``make(data={…}, …)`` for stage 1: six steps, the last three on whole volumes."""

    def make(**sections: Any) -> BraTSDataModule:
        return BraTSDataModule(autoencoder_config(root, tmp_path / "run", **sections))

    return make


def batches(loader: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(loader)


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x["image"], y["image"]) and x["case_id"] == y["case_id"]
        for x, y in zip(a, b, strict=True)
    )


class TestStage1:
    def test_crops_first_then_whole_volumes(self, make_stage1: Callable[..., BraTSDataModule]) -> None:
        data = make_stage1()
        data.setup("fit")
        shapes = [tuple(batch["image"].shape) for batch in data.train_dataloader()]
        assert shapes == [(2, 1, 8, 8, 8)] * 3 + [(1, 1, 16, 16, 16)] * 3
        batch = next(iter(data.train_dataloader()))
        assert batch["label"].dtype == torch.int64
        assert len(batch["modality"]) == len(batch["case_id"]) == 2

    def test_without_a_crop_size_all_steps_are_alike(
        self, make_stage1: Callable[..., BraTSDataModule]
    ) -> None:
        data = make_stage1(data={"crop_size": None})
        data.setup("fit")
        assert [tuple(b["image"].shape) for b in data.train_dataloader()] == [(2, 1, 16, 16, 16)] * 6

    @pytest.mark.parametrize("start", [1, 4, 6])
    def test_a_resumed_loader_gives_the_tail(
        self, make_stage1: Callable[..., BraTSDataModule], start: int
    ) -> None:
        augment = {"augment": {"gamma_prob": 0.5, "affine_prob": 0.5}}
        data = make_stage1(data=augment)
        data.setup("fit")
        whole = batches(data.train_dataloader())
        resumed = make_stage1(data=augment)
        resumed.set_start_step(start)
        resumed.setup("fit")
        assert same(batches(resumed.train_dataloader()), whole[start:])

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_loader_processes_change_nothing(self, make_stage1: Callable[..., BraTSDataModule]) -> None:
        alone, helped = make_stage1(), make_stage1(data={"num_workers": 2, "cache": "disk"})
        alone.setup("fit")
        helped.setup("fit")
        assert same(batches(alone.train_dataloader()), batches(helped.train_dataloader()))
        assert same(batches(alone.val_dataloader()), batches(helped.val_dataloader()))

    def test_loaders_leave_the_global_random_state_alone(
        self, make_stage1: Callable[..., BraTSDataModule]
    ) -> None:
        data = make_stage1()
        data.setup("fit")
        before = torch.get_rng_state()
        batches(data.train_dataloader())
        assert torch.equal(before, torch.get_rng_state())

    def test_ranks_share_the_steps(self, make_stage1: Callable[..., BraTSDataModule]) -> None:
        ranks = []
        for rank in (0, 1):
            data = make_stage1(data={"augment": {"flip_prob": 0.0}, "crop_size": None})
            data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
            data.setup("fit")
            ranks.append(batches(data.train_dataloader()))
        single = make_stage1(data={"augment": {"flip_prob": 0.0}, "crop_size": None, "batch_size": 4})
        single.setup("fit")
        for first, second, both in zip(*ranks, batches(single.train_dataloader()), strict=True):
            assert torch.equal(torch.cat([first["image"], second["image"]]), both["image"])

    def test_evaluation_is_whole_single_and_repeatable(
        self, make_stage1: Callable[..., BraTSDataModule]
    ) -> None:
        data = make_stage1()
        data.setup("validate")
        data.setup("test")
        for loader in (data.val_dataloader, data.test_dataloader):
            first, again = batches(loader()), batches(loader())
            assert len(first) == 2 * 4
            assert all(batch["image"].shape == (1, 1, 16, 16, 16) for batch in first)
            assert same(first, again)

    def test_a_limited_validation_is_a_fixed_draw(self, make_stage1: Callable[..., BraTSDataModule]) -> None:
        data = make_stage1(data={"max_val_volumes": 3})
        data.setup("fit")
        assert len(batches(data.val_dataloader())) == 3
        assert same(batches(data.val_dataloader()), batches(data.val_dataloader()))

    def test_patients_never_cross_loaders(self, make_stage1: Callable[..., BraTSDataModule]) -> None:
        data = make_stage1(training={"max_steps": 40})
        data.setup(None)
        loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
        patients = [{c[:-4] for batch in loader for c in batch["case_id"]} for loader in loaders]
        assert [len(p) for p in patients] == [4, 2, 2]
        assert len(set.union(*patients)) == 8
        assert [set(getattr(data.split, part)) for part in PARTS] == patients


class TestSplitFile:
    def test_it_is_written_and_read_again(
        self, make_stage1: Callable[..., BraTSDataModule], tmp_path: Path
    ) -> None:
        split = make_stage1().split
        assert Split.load(tmp_path / "run" / "split.json") == split == make_stage1().split

    @pytest.fixture
    def has_run(self, tmp_path: Path) -> None:
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()

    @pytest.mark.usefixtures("has_run")
    def test_other_cases_are_refused(
        self, make_stage1: Callable[..., BraTSDataModule], root: Path, tmp_path: Path
    ) -> None:
        assert make_stage1().split
        write_brats_tree(tmp_path / "more", 9)
        (tmp_path / "more" / "BraTS-GLI-00008-000").rename(root / "BraTS-GLI-00008-000")
        with pytest.raises(DataError, match=r"split.json: .*not in the split \(BraTS-GLI-00008\)"):
            make_stage1().setup("fit")

    @pytest.mark.usefixtures("has_run")
    def test_other_shares_are_refused(self, make_stage1: Callable[..., BraTSDataModule]) -> None:
        assert make_stage1().split
        with pytest.raises(ConfigError, match=r"data.split.train: .*use another output_dir"):
            make_stage1(data={"split": {"train": 0.75, "val": 0.25}}).setup("fit")

    def test_a_start_that_was_refused_binds_no_later_one(
        self, make_stage1: Callable[..., BraTSDataModule], tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=r"data.split.val: .*at least one patient"):
            make_stage1(data={"split": {"train": 1.0, "val": 0.0}}).setup("fit")
        split = make_stage1().split
        assert (len(split.train), len(split.val), len(split.test)) == (4, 2, 2)
        assert Split.load(tmp_path / "run" / "split.json") == split


class TestRefusals:
    def test_an_empty_test_split_names_the_remedy(self, make_stage1: Callable[..., BraTSDataModule]) -> None:
        data = make_stage1(data={"split": {"train": 0.75, "val": 0.25}})
        data.setup("fit")
        with pytest.raises(ConfigError, match=r"data.split.test: .*got none; set data.split.test \(0.15"):
            data.setup("test")

    def test_training_needs_a_validation_split(self, make_stage1: Callable[..., BraTSDataModule]) -> None:
        with pytest.raises(ConfigError, match=r"data.split.val: .*raise data.split.val"):
            make_stage1(data={"split": {"train": 1.0, "val": 0.0}}).setup("fit")

    @pytest.mark.parametrize("key", ["root", "cache_dir", "store_dir"])
    def test_a_variable_left_in_a_path(self, make_stage1: Callable[..., BraTSDataModule], key: str) -> None:
        # The config loader replaces variables; a library caller may not have used it.
        config = make_stage1().config
        data = config.data.model_copy(update={key: "${DATA}/brats"})
        with pytest.raises(ConfigError, match=rf"data.{key}: .*'\$\{{DATA\}}/brats' with a variable"):
            BraTSDataModule(config.model_copy(update={"data": data}))

    @pytest.mark.parametrize("key", ["cache_dir", "store_dir"])
    def test_nothing_is_written_into_the_data(
        self, make_stage1: Callable[..., BraTSDataModule], root: Path, key: str
    ) -> None:
        with pytest.raises(ConfigError, match=rf"data.{key}: expected a folder outside data.root"):
            make_stage1(data={key: str(root / "sub")})

    def test_mixed_spacings_need_a_target(
        self, make_stage1: Callable[..., BraTSDataModule], root: Path, tmp_path: Path
    ) -> None:
        write_brats_tree(tmp_path / "fine", 9, spacing=3.0)
        (tmp_path / "fine" / "BraTS-GLI-00008-000").rename(root / "BraTS-GLI-00008-000")
        with pytest.raises(DataError, match=r"data.spacing: .*BraTS-GLI-00008-000.*set data.spacing"):
            make_stage1().setup("fit")
        resampled = make_stage1(data={"spacing": [4.0, 4.0, 4.0]})
        resampled.setup("validate")

    def test_a_case_without_a_modality_is_named(
        self, make_stage1: Callable[..., BraTSDataModule], root: Path
    ) -> None:
        next((root / "BraTS-GLI-00003-000").glob("*t2f*")).unlink()
        with pytest.raises(DataError, match=r"BraTS-GLI-00003-000(.|\n)*FLAIR"):
            make_stage1().setup("fit")

    def test_a_cut_head_is_reported(
        self, make_stage1: Callable[..., BraTSDataModule], caplog: pytest.LogCaptureFixture
    ) -> None:
        data = make_stage1(data={"grid": [8, 8, 8], "crop_size": None})
        with caplog.at_level(logging.WARNING):
            data.setup("validate")
        assert "cuts off part of the head in 2 of 2 cases" in caplog.text


class TestGeometry:
    def test_the_reference_affine_is_ras_and_axis_aligned(
        self, make_stage1: Callable[..., BraTSDataModule]
    ) -> None:
        affine = make_stage1().reference_affine
        assert affine.shape == (4, 4)
        assert np.array_equal(affine[:3, :3], np.diag([4.0, 4.0, 4.0]))
        centre = affine @ [7.5, 7.5, 7.5, 1]
        assert np.abs(centre[:3]).max() < 12  # millimetres from the centre of the head

    def test_turning_an_oblique_affine_keeps_spacing_and_centre(self) -> None:
        angle = 0.2
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.diag([1.0, 2.0, 3.0])
        affine[:3, 3] = [5, -6, 7]
        aligned = axis_aligned(affine, (9, 9, 9))
        assert np.allclose(aligned[:3, :3], np.diag([1.0, 2.0, 3.0]))
        assert np.allclose(aligned @ [4, 4, 4, 1], affine @ [4, 4, 4, 1])


def test_progress_is_told_to_the_caller(root: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = autoencoder_config(root, tmp_path / "run")
    data = BraTSDataModule(config, progress=lambda done, total: seen.append((done, total)))
    data.setup("fit")
    assert seen[3] == (4, 4)
    assert seen[-1] == (2, 2)


# -- stage 2 --------------------------------------------------------------------------------------


DATA_MODULES = {
    "label_conditional": BraTSLabelConditionalDataModule,
    "decoder": BraTSTranslationDataModule,
    "single_stream": BraTSInContextDataModule,
}


class Stage2:
    """Stage-2 data modules over one untrained autoencoder; counts the volumes it encodes."""

    def __init__(self, root: Path, tmp_path: Path) -> None:
        torch.manual_seed(0)
        self.network = build_autoencoder("fsq", **AUTOENCODER).eval()
        self.root, self.tmp_path = root, tmp_path
        self.encoded = 0

    @torch.no_grad()
    def encode(self, volumes: Tensor) -> Encoded:
        self.encoded += len(volumes)
        z = self.network.encode(volumes)
        return Encoded(z, self.network.embed(self.network.quantize(z)))

    def make(self, *, kind: str = "label_conditional", **how: Any) -> AbstractBraTSDataModule:
        """Return a data module; ``data`` changes the section, other names those of its ``EncodedSource``."""
        model = {"kind": kind, "embed_dim": 24, "num_blocks": 1, "num_heads": 2}
        config = transformer_config(
            self.root,
            self.tmp_path / "run",
            self.tmp_path / "ae.ckpt",
            data=how.pop("data", {}),
            model=model,
            **{name: how.pop(name) for name in ("context", "loss") if name in how},
        )
        options = {
            "encode": self.encode,
            "indices_to_codes": self.network.indices_to_codes,
            "encoder_hash": "weights-1",
        } | how
        return DATA_MODULES[kind](config, encoded=EncodedSource(**options))


@pytest.fixture
def stage2(root: Path, tmp_path: Path) -> Stage2:
    return Stage2(root, tmp_path)


class TestRegions:
    @pytest.mark.parametrize("kind", list(DATA_MODULES))
    def test_training_samples_hold_the_segmentation_where_the_loss_weighs_it(
        self, stage2: Stage2, kind: str
    ) -> None:
        data = stage2.make(kind=kind, loss={"region_weight": 5.0})
        data.setup("fit")
        train: Any = data._dataset("train")
        batch = next(iter(data.train_dataloader()))
        assert batch["seg"].shape == (4, 16, 16, 16)
        rows = {(train[i]["case_id"], train[i]["flipped"]): train[i]["seg"] for i in range(len(train))}
        for (case, flipped), seg in rows.items():
            assert seg.any()
            assert torch.equal(seg, rows[case, not flipped].flip(0))
        assert "seg" not in next(iter(data.val_dataloader()))

    def test_at_equal_weight_none_is_read(self, stage2: Stage2) -> None:
        data = stage2.make()
        data.setup("fit")
        assert "seg" not in next(iter(data.train_dataloader()))

    def test_a_weight_without_segmentations_is_refused(self, stage2: Stage2, root: Path) -> None:
        for file in root.rglob("*seg*"):
            file.unlink()
        with pytest.raises(
            ConfigError, match=r"loss.region_weight: .* no case of the train split .* remove the key"
        ):
            stage2.make(loss={"region_weight": 5.0}).setup("fit")


class TestDecoder:
    def test_a_pair_is_of_one_case_in_two_modalities(self, stage2: Stage2) -> None:
        data = stage2.make(kind="decoder")
        data.setup("fit")
        for batch in data.train_dataloader():
            assert batch["source_latent"].shape == (4, 3, 4, 4, 4)
            assert batch["source_latent"].dtype == torch.float32
            assert (batch["source_label"] != batch["label"]).all()

    def test_the_source_is_mirrored_as_the_target_is(self, stage2: Stage2) -> None:
        data = stage2.make(kind="decoder")
        data.setup("fit")
        dataset: Any = data._dataset("train")
        for index in range(len(dataset)):
            source = (index // 4) * 4 + (index % 4 + 1) % 4
            codes = stage2.network.indices_to_codes(dataset[source]["target_indices"][None])
            assert torch.equal(dataset[index]["source_latent"], codes[0])
            assert dataset[index]["source_modality"] == dataset[source]["modality"]
            assert dataset[index]["case_id"] == dataset[source]["case_id"]
            assert dataset.store[index]["flipped"] == dataset.store[source]["flipped"]

    def test_the_draw_decides_the_source(self, stage2: Stage2) -> None:
        loaders = []
        for _ in range(2):
            data = stage2.make(kind="decoder")
            data.setup("fit")
            loaders.append([batch["source_label"].tolist() for batch in data.train_dataloader()])
        assert loaders[0] == loaders[1]
        assert len({label for batch in loaders[0] for label in batch}) > 1

    def test_one_modality_cannot_be_translated(self, stage2: Stage2) -> None:
        with pytest.raises(ConfigError, match=r"data.modalities: expected at least two"):
            stage2.make(kind="decoder", data={"modalities": ["T1"]})


class TestTokens:
    def test_the_autoencoder_may_not_have_seen_held_out_patients(self, stage2: Stage2) -> None:
        split = stage2.make().split
        other = Split(split.train + split.test[:1], split.val, split.test[1:])
        with pytest.raises(ConfigError, match=rf"trained on 1 that this run holds out \({split.test[0]}\)"):
            stage2.make(split=other).setup("fit")
        stage2.make(split=split).setup("fit")

    def test_without_an_encoder_everything_must_be_there(self, stage2: Stage2) -> None:
        with pytest.raises(ConfigError, match=r"inputs.autoencoder: .*lacks some of the 32 train volumes"):
            stage2.make(encode=None).setup("fit")
        stage2.make().setup("fit")
        stage2.make(encode=None).setup("fit")

    def test_an_edited_file_and_another_encoder_are_encoded_again(self, stage2: Stage2) -> None:
        stage2.make().setup("fit")
        case = stage2.make().split.train[0] + "-000"
        path = next((stage2.root / case).glob("*t1c*"))
        path.write_bytes(next((stage2.root / case).glob("*t1n*")).read_bytes())
        stage2.encoded = 0
        stage2.make().setup("fit")
        assert stage2.encoded == 8  # four modalities and their mirrors: the crop is found on their union
        stage2.encoded = 0
        stage2.make(encoder_hash="weights-2").setup("fit")
        assert stage2.encoded == 8 * 4 + 2 * 4

    def test_a_lost_shard_is_encoded_again(self, stage2: Stage2, tmp_path: Path) -> None:
        stage2.make().setup("validate")
        next((tmp_path / "run" / "store").glob("*.tokens.npy")).unlink()
        data = stage2.make()
        data.setup("validate")
        assert stage2.encoded == 2 * 8
        assert len(batches(data.val_dataloader())) == 8

    def test_the_store_survives_another_part(self, stage2: Stage2, tmp_path: Path) -> None:
        stage2.make().setup("fit")
        stage2.make().setup("test")
        stage2.encoded = 0
        stage2.make().setup(None)
        assert stage2.encoded == 0
        manifest = json.loads((tmp_path / "run" / "store" / "manifest.json").read_text())
        assert len(manifest["items"]) == 4 * 8 + 2 * 4 + 2 * 4
