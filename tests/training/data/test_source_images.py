"""Source images of MAISI's stage 3: those of the latent's own case, mirrored with it, and never its own."""

from types import SimpleNamespace

import numpy as np
import torch

from prod9.data.datasets.latents import SourceImages
from prod9.data.preprocessing import dequantise

NAMES = ("T1", "T1ce", "T2", "FLAIR")


class Cases:
    """Two cases of four small volumes each."""

    def __init__(self) -> None:
        self.cases = [SimpleNamespace(case_id=name) for name in ("a", "b")]
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 60000, (2, 4, 2, 3, 2)).astype(np.uint16)

    def __getitem__(self, place: int) -> SimpleNamespace:
        return SimpleNamespace(images=self.images[place])


def make(items: list[dict]) -> tuple[SourceImages, Cases]:
    cases = Cases()
    return SourceImages(items, cases, modalities=NAMES, slots=(0, 2)), cases  # type: ignore[arg-type]


def test_each_latent_has_the_sources_of_its_own_case_mirrored_alike() -> None:
    items = [
        {"case_id": case, "modality": "FLAIR", "flipped": flip} for case in "ab" for flip in (False, True)
    ]
    dataset, cases = make(items)
    assert len(dataset) == 4
    for k, (place, flipped) in enumerate([(0, False), (0, True), (1, False), (1, True)]):
        expected = torch.stack([dequantise(cases.images[place][slot]) for slot in (0, 2)])
        images = dataset[k]["images"]
        assert images.shape == (2, 2, 3, 2)
        assert torch.equal(images, expected.flip(1) if flipped else expected)


def test_a_target_never_sees_itself() -> None:
    dataset, cases = make([{"case_id": "a", "modality": "T2", "flipped": False}])
    images = dataset[0]["images"]
    assert torch.equal(images[0], dequantise(cases.images[0][0]))
    assert not images[1].any()


class Stored:
    """Latents of two cases of four modalities, each full of a number of its own."""

    def __init__(self) -> None:
        self.items = [
            {"case_id": case, "modality": name, "flipped": flip}
            for case in "ab"
            for name in NAMES
            for flip in (False, True)
        ]
        self.store = self

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int) -> dict:
        return self.items[key]

    def describe(self, key: int) -> dict:
        return self.items[key]

    def latent(self, key: int) -> torch.Tensor:
        return torch.full((1, 2, 2, 2), float(key))


def test_the_mean_latent_is_that_of_the_sources_that_are_shown() -> None:
    stored = Stored()
    dataset = SourceImages(stored, Cases(), modalities=NAMES, slots=(0, 2), averages=True)  # type: ignore[arg-type]
    for key, item in enumerate(stored.items):
        shown = [
            place
            for place, other in enumerate(stored.items)
            if other["case_id"] == item["case_id"]
            and other["flipped"] == item["flipped"]
            and other["modality"] in {"T1", "T2"} - {item["modality"]}
        ]
        assert dataset[key]["source_latent"].unique().tolist() == [np.mean(shown)]
