"""BraTSInContextDataModule: which sources and examples a sample holds, and that they are its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prod9.data.datasets.in_context import InContextDataset
from prod9.errors import ConfigError
from tests.fixtures import write_brats_tree
from tests.training.data.test_brats_data import Stage2


@pytest.fixture
def stage2(tmp_path: Path) -> Stage2:
    write_brats_tree(tmp_path / "cohort", 8)
    return Stage2(tmp_path / "cohort", tmp_path)


def dataset(stage2: Stage2, part: str = "train", **context: Any) -> InContextDataset:
    data = stage2.make(kind="single_stream", context=context)
    data.setup("fit")
    found = data._dataset(part)  # type: ignore[arg-type]
    assert isinstance(found, InContextDataset)
    return found


def batches(stage2: Stage2, **context: Any) -> list[dict[str, Any]]:
    data = stage2.make(kind="single_stream", context=context)
    data.setup("fit")
    return list(data.train_dataloader())


def test_a_batch_mixes_numbers_of_sources(stage2: Stage2) -> None:
    counts = set()
    for batch in batches(stage2):
        assert batch["source_latents"].shape == (4, 3, 3, 4, 4, 4)
        assert batch["source_labels"].shape == batch["co_registered"].shape == (4, 3)
        assert batch["co_registered"].all()
        assert batch["target_indices"].shape == batch["foreground"].shape == (4, 4, 4, 4)
        there = batch["source_labels"] >= 0
        counts |= set(there.sum(1).tolist())
        assert not ((batch["source_labels"] == batch["label"][:, None]) & there).any()
        assert torch.equal(
            there.long().argsort(dim=1, descending=True, stable=True), torch.arange(3).expand(4, 3)
        )
    assert counts == {1, 2, 3}


@pytest.mark.parametrize(("source", "flipped"), [("latent", 0), ("codes", 1)])
def test_sources_are_of_the_same_patient_and_mirrored_alike(
    stage2: Stage2, source: str, flipped: int
) -> None:
    data = stage2.make(kind="single_stream", context={"source": source})
    data.setup("fit")
    volumes = data._builder.build_brats_stage1(data._cache("train"), train=False)
    samples = data._dataset("train")
    for case in range(4):
        for m in range(4):
            sample = samples[case * 8 + flipped * 4 + m]
            assert sample["label"] == m
            for label, held in zip(sample["source_labels"].tolist(), sample["source_latents"], strict=True):
                if label < 0:
                    assert not held.any()
                    continue
                volume = volumes[case * 4 + label]["image"][None]
                z = stage2.network.encode(volume.flip(2) if flipped else volume)
                expected = z if source == "latent" else stage2.network.quantize(z)
                torch.testing.assert_close(held, expected[0].half().float(), rtol=1e-3, atol=1e-3)


def test_the_number_of_sources_is_as_asked(stage2: Stage2) -> None:
    for batch in batches(stage2, min_sources=2, max_sources=2):
        assert batch["source_labels"].shape == (4, 2)
        assert (batch["source_labels"] >= 0).all()
    found = {
        int((b["source_labels"] >= 0).sum(1).min()) for b in batches(stage2, min_sources=0, max_sources=1)
    }
    assert 0 in found


def test_examples_come_from_other_patients_with_the_target_among_them(stage2: Stage2) -> None:
    samples = dataset(stage2, max_examples=2)
    seen = set()
    for index in range(len(samples)):
        sample = samples[index]
        assert sample["source_labels"].shape == (11,)
        there = sample["source_labels"] >= 0
        near = sample["source_labels"][there & sample["co_registered"]].tolist()
        far = sample["source_labels"][there & ~sample["co_registered"]].tolist()
        group = [int(sample["label"]), *near]
        assert far == group * (len(far) // len(group))
        seen.add(len(far) // len(group))
        for rows in [samples._draw(index, np.random.default_rng(index))]:
            own = samples._patients[index // 4]
            assert all((samples._patients[row // 4] == own) == is_near for row, is_near in rows)
    assert seen == {0, 1, 2}


def test_evaluation_draws_the_same_sources_every_time(stage2: Stage2) -> None:
    samples = dataset(stage2, "val")
    counts = set()
    for index in range(len(samples)):
        one, again = samples[index], samples[index]
        assert torch.equal(one["source_labels"], again["source_labels"])
        counts.add(int((one["source_labels"] >= 0).sum()))
    assert len(counts) > 1, "selection looks at small contexts too"


def test_a_resumed_loader_gives_the_tail(stage2: Stage2) -> None:
    data = stage2.make(kind="single_stream")
    data.setup("fit")
    whole = [batch["source_labels"] for batch in data.train_dataloader()]
    data.set_start_step(4)
    tail = [batch["source_labels"] for batch in data.train_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(tail, whole[4:], strict=True))


@pytest.mark.parametrize(
    ("kind", "context", "data", "message"),
    [
        ("label_conditional", {}, {}, "single_stream alone"),
        ("single_stream", {"max_sources": 4}, {}, "at least 5 for 4 sources"),
        ("single_stream", {"min_sources": 3, "max_sources": 2}, {}, "at most max_sources"),
        ("single_stream", {}, {"modalities": ["T1"]}, "at least 2 for 1 sources"),
    ],
)
def test_contexts_that_cannot_be_are_refused(
    stage2: Stage2, kind: str, context: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        stage2.make(kind=kind, context=context, data=data)
