"""Label maps as volumes: what goes in comes out, and what is measured of a lesion."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.config.load import config_from_dict
from prod9.config.schema import CovariatesConfig
from prod9.data.label_covariates import diameter_of, measure, mirrored, ml_of
from prod9.data.layouts.find import find_cases
from prod9.data.transforms import Augmentation, IntensityScaling, TransformBuilder
from prod9.errors import ConfigError, DataError
from prod9.label_maps import classes_of, coded, join, labels_in
from prod9.modalities import LABEL_MAP_CLASSES
from prod9.pipelines.masks.draw import placed
from prod9.pipelines.masks.wishes import Wish, draw_values, gap_of
from prod9.training.algorithms.label_map_trainer import LabelMapTrainer
from prod9.training.data.covariates import measured_covariates
from prod9.training.losses import VAEGANLoss, label_distance
from tests.fixtures import write_brats_tree

BOUNDS = {"diameter_mm": (0.0, 120.0), "right": (0.0, 1.0), "front": (0.0, 1.0), "up": (0.0, 1.0)}
LESIONS = [{"diameter_mm": 20.0 + k, "right": 0.2 + 0.05 * k, "front": 0.5, "up": 0.6} for k in range(10)] + [
    {"diameter_mm": 0.0}
]


def test_coding_is_undone_also_after_quantising() -> None:
    labels = np.arange(5, dtype=np.uint8).reshape(1, 1, 5).repeat(2, 0)
    brain = np.asarray([True, False]).reshape(2, 1, 1).repeat(5, 2)
    classes = join(labels, brain)
    stored = np.rint(coded(classes) * 65535).astype(np.uint16) / np.float32(65535)
    assert np.array_equal(classes_of(stored), classes)
    assert np.array_equal(classes_of(torch.from_numpy(stored)).numpy(), classes)
    assert np.array_equal(labels_in(classes), labels)
    assert np.array_equal(classes > 0, brain | (labels > 0))
    with pytest.raises(ValueError, match="at most 4"):
        join(labels + 1, brain)


def test_the_label_map_of_a_case_is_its_segmentation_within_its_brain(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "whole", 1)
    builder = TransformBuilder(
        spacing=None, grid=(16, 16, 16), crop_size=None,
        intensity=IntensityScaling(mode="percentile", lower=0.0, upper=99.5),
        augment=Augmentation(flip_prob=0, bias_field_prob=0, gamma_prob=0, scale_prob=0, affine_prob=0),
    )  # fmt: skip
    (case,) = find_cases(tmp_path / "whole", modalities=["seg"])
    made = builder.build_preprocessing(["seg"])(case)
    (scan,) = find_cases(tmp_path / "whole", modalities=["T1"])
    known = builder.build_preprocessing(["T1"]).place(scan)
    classes = classes_of(made.images[0] / np.float32(65535))
    assert known.seg is not None
    np.testing.assert_array_equal(labels_in(classes), known.seg)
    np.testing.assert_array_equal(classes > 0, known.inside | (known.seg > 0))
    write_brats_tree(tmp_path / "bare", 1, with_seg=False)
    with pytest.raises(DataError, match="lacks seg"):
        find_cases(tmp_path / "bare", modalities=["seg"])


def test_the_network_takes_coded_maps_and_decodes_them() -> None:
    network = AutoencoderFSQ(
        levels=[8, 5], num_channels=[8, 8], num_res_blocks=[1, 1], norm_num_groups=4, label_maps=True,
        in_channels=LABEL_MAP_CLASSES, out_channels=LABEL_MAP_CLASSES,
    ).eval()  # fmt: skip
    x = coded(torch.randint(LABEL_MAP_CLASSES, (2, 1, 8, 8, 8)))
    output = network(x)
    assert output.reconstruction.shape == (2, LABEL_MAP_CLASSES, 8, 8, 8)
    decoded = network.decode_tokens(output.tokens)
    assert torch.equal(decoded, coded(output.reconstruction.argmax(1, keepdim=True)))
    assert torch.equal(network.reconstruct(x), decoded)
    assert not torch.equal(network.encode(x), network.encode(1 - x))  # it reads the classes


def test_scores_and_loss_of_perfect_logits() -> None:
    classes = torch.randint(LABEL_MAP_CLASSES, (2, 1, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = 100 * torch.nn.functional.one_hot(classes[:, 0], LABEL_MAP_CLASSES).movedim(-1, 1).float()
    assert label_distance(logits, coded(classes)).item() == pytest.approx(0, abs=1e-4)
    # All classes alike: cross-entropy log C, and Dice below a half.
    assert label_distance(0 * logits, coded(classes)).item() > math.log(LABEL_MAP_CLASSES) + 0.5

    class Perfect(torch.nn.Module):
        levels = (5,)
        vocab_size = 5
        last_layer = torch.zeros(1)

        def forward(self, x: torch.Tensor) -> object:
            from prod9.types import AutoencoderOutput

            tokens = torch.zeros(2, 2, 2, 2, dtype=torch.int64)
            return AutoencoderOutput(logits, logits, logits, None, tokens)

    loss = VAEGANLoss(
        reconstruction="labels", reconstruction_weight=1.0, perceptual=None, perceptual_weight=0.0,
        adversarial_weight=0.0, criterion="hinge", adaptive=False, adaptive_max=1.0, start_step=0,
    )  # fmt: skip
    trainer = LabelMapTrainer(autoencoder=Perfect(), discriminator=None, loss=loss)  # type: ignore[arg-type]
    scores = trainer.summarise(trainer.tally(coded(classes)))
    assert {name: scores[name].item() for name in ("dice", "dice_lesion", "dice_brain", "accuracy")} == {
        "dice": 1.0, "dice_lesion": 1.0, "dice_brain": 1.0, "accuracy": 1.0,
    }  # fmt: skip


@given(st.floats(0.01, 500))
def test_volume_and_diameter_are_inverse(ml: float) -> None:
    assert ml_of(diameter_of(ml)) == pytest.approx(ml)


def test_a_mirror_image_measures_as_mirrored() -> None:
    classes = np.ones((12, 10, 8), np.uint8)
    classes[1:3, 4:9, 2:4] = 3
    spacing = np.asarray([1.0, 2.0, 3.0])
    found = measure(classes, spacing)
    assert measure(classes[::-1], spacing) == pytest.approx(mirrored(found))
    assert ml_of(found["diameter_mm"]) == pytest.approx(20 * 6 / 1000)
    own, mirror = measured_covariates(
        CovariatesConfig(numbers=BOUNDS), {"a": found, "b": {"diameter_mm": 0.0}}
    )
    assert own["a"][1, 1] == pytest.approx(-mirror["a"][1, 1].item())
    assert not own["b"][1:].any()


@given(st.integers(0, 2**32), st.sampled_from(["left", "right", None]), st.sampled_from([2.0, 20.0, None]))
def test_wishes_are_kept_and_stay_in_bounds(seed: int, side: str | None, ml: float | None) -> None:
    wish = Wish(volume_ml=ml, side=side)  # type: ignore[arg-type]
    values = draw_values(LESIONS, wish, BOUNDS, np.random.default_rng(seed), turn=seed, mirrors=True)
    assert set(values) == set(BOUNDS)
    assert all(BOUNDS[name][0] <= value <= BOUNDS[name][1] for name, value in values.items())
    if side is not None:
        assert (values["right"] <= 0.5) if side == "left" else (values["right"] >= 0.5)
    if ml is not None:
        assert ml_of(values["diameter_mm"]) == pytest.approx(ml)


def test_the_gap_is_that_of_the_worst_value() -> None:
    asked = {"diameter_mm": 20.0, "up": 0.5}
    assert gap_of(asked | {"right": 0.1}, asked) == 0
    assert gap_of({"diameter_mm": 20 * math.exp(0.14), "up": 0.5}, asked) == pytest.approx(1)
    assert gap_of({"diameter_mm": 20.0, "up": 0.8}, asked) == pytest.approx(3)
    assert gap_of({"diameter_mm": 1.0}, {}) == 0


@given(st.integers(0, 2**32))
def test_every_training_lesion_has_its_turn(seed: int) -> None:
    known = [{"diameter_mm": 10.0 * 3**k} for k in range(6)]
    bounds = {"diameter_mm": (0.0, 1e4)}
    rng = np.random.default_rng(seed)
    asked = [
        draw_values(known, Wish(), bounds, rng, turn=seed + k, mirrors=False)["diameter_mm"] for k in range(6)
    ]
    assert sorted(round(math.log(value / 10, 3)) for value in asked) == list(range(6))


def test_sides_without_mirror_images() -> None:
    left = [one | {"right": 0.3} for one in LESIONS[:3]]
    rng = np.random.default_rng(0)
    assert draw_values(left, Wish(), BOUNDS, rng, turn=0, mirrors=False)["right"] < 0.5
    with pytest.raises(ConfigError, match="--side"):
        draw_values(left, Wish(side="right"), BOUNDS, rng, turn=0, mirrors=False)
    assert draw_values([], Wish(), BOUNDS, rng, turn=0, mirrors=True) == {}


def test_a_drawn_lesion_is_kept_within_the_largest_brain() -> None:
    classes = np.zeros((20, 20, 20), np.uint8)
    classes[4:16, 5:15, 6:14] = 1
    classes[8:10, 8:10, 8:10] = 2
    classes[6, 7, 8] = 0  # a hole in the brain
    classes[0:2, 0, 0] = 3  # a lesion outside
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    lesion, cut = placed(coded(classes), affine)
    assert lesion.labels.shape == (12, 10, 8)
    assert lesion.brain.all()
    assert np.unique(lesion.labels).tolist() == [0, 1]
    assert cut == pytest.approx(0.2)
    np.testing.assert_array_equal(lesion.affine[:3, 3], [8, 10, 12])


@pytest.mark.parametrize(
    ("section", "value", "text"),
    [
        ("model", {"label_maps": True}, "got label maps in model.label_maps"),
        ("data", {"modalities": ["seg", "T1"]}, "alone"),
        ("data", {"modalities": ["seg"], "augment": {"gamma_prob": 0.1}}, "gamma_prob"),
        ("model", {"label_maps": True, "in_channels": 1}, "in_channels"),
    ],
)
def test_configs_that_are_refused(section: str, value: dict[str, object], text: str) -> None:
    values = {"stage": "autoencoder", "output_dir": "x", "data": {"root": "y"}, "model": {}, "loss": {}}
    with pytest.raises(ConfigError, match=text):
        config_from_dict(values | {section: {**values[section], **value}}, source="test")  # type: ignore[dict-item]
