"""From files to the grid: geometry, intensities, and randomness that belongs to the draw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import pytest
import torch

from prod9.data.layouts.find import Case, find_cases
from prod9.data.preprocessing import CaseVolumes, dequantise, quantise
from prod9.data.transforms import (
    Augmentation,
    IntensityScaling,
    Pair,
    TransformBuilder,
    crop_around_foreground,
)
from prod9.errors import ConfigError, DataError

MODALITIES = ("T1", "T1ce", "T2", "FLAIR")
Make = Callable[..., TransformBuilder]


def preprocess(case: Case, transforms: TransformBuilder) -> CaseVolumes:
    return transforms.build_preprocessing(MODALITIES)(case)


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> None:
    image = nib.load(path)
    data = change(np.asarray(image.dataobj))
    nib.save(nib.Nifti1Image(data, image.affine if affine is None else affine), path)


class TestPreprocessing:
    def test_the_grid_holds_the_whole_head_in_ras(self, cohort: Path, make_transforms: Make) -> None:
        case = find_cases(cohort)[0]
        volumes = preprocess(case, make_transforms(grid=(24, 24, 24)))
        assert volumes.images.shape == (4, 24, 24, 24)
        assert volumes.images.dtype == np.uint16
        assert nib.aff2axcodes(volumes.affine) == ("R", "A", "S")
        raw = nib.load(case.images["T1"])
        assert np.count_nonzero(volumes.images[0]) == pytest.approx(np.count_nonzero(raw.dataobj), rel=0.02)

    def test_the_affine_leads_back_to_the_file(self, cohort: Path, make_transforms: Make) -> None:
        case = find_cases(cohort)[0]
        volumes = preprocess(case, make_transforms(grid=(24, 24, 24)))
        raw = nib.load(case.images["T2"])
        data = np.asarray(raw.dataobj, dtype=np.float64)
        top = np.percentile(data[data != 0], 99.5)
        low = data[data != 0].min()
        for voxel in np.argwhere(volumes.images[2])[::97]:
            i, j, k = np.rint(np.linalg.inv(raw.affine) @ volumes.affine @ [*voxel, 1])[:3].astype(int)
            expected = np.clip((data[i, j, k] - low) / (top - low), 0, 1)
            assert volumes.images[2][tuple(voxel)] / 65535 == pytest.approx(expected, abs=1e-3)

    def test_the_background_is_exactly_zero_and_the_rest_fills_the_range(
        self, cohort: Path, make_transforms: Make
    ) -> None:
        volumes = preprocess(find_cases(cohort)[1], make_transforms())
        for image in volumes.images:
            assert image[0, 0, 0] == 0
            assert image.max() == 65535
            assert np.mean(image == 0) > 0.3

    def test_modalities_stay_aligned_when_one_sees_more(self, cohort: Path, make_transforms: Make) -> None:
        case = find_cases(cohort)[0]
        before = preprocess(case, make_transforms(grid=(24, 24, 24)))

        def add_a_speck(data: np.ndarray) -> np.ndarray:
            data = data.copy()
            data[0, 0, 0] = 300
            return data

        rewrite(case.images["T2"], add_a_speck)
        after = preprocess(case, make_transforms(grid=(24, 24, 24)))
        assert after.extent > before.extent
        shift = np.argwhere(after.images[0]).min(0) - np.argwhere(before.images[0]).min(0)
        for m in (0, 1, 3):
            moved = np.roll(before.images[m], shift, axis=(0, 1, 2))
            assert np.array_equal(moved, after.images[m])

    def test_a_segmentation_is_never_interpolated(self, cohort: Path, make_transforms: Make) -> None:
        volumes = preprocess(find_cases(cohort)[0], make_transforms(spacing=(3.0, 3.0, 3.0)))
        assert volumes.seg is not None
        assert volumes.seg.dtype == np.uint8
        assert set(np.unique(volumes.seg)) == {0, 1, 2, 3}

    def test_a_resampled_volume_has_the_spacing_asked_for(self, cohort: Path, make_transforms: Make) -> None:
        case = find_cases(cohort)[0]
        native = preprocess(case, make_transforms())
        finer = preprocess(case, make_transforms(spacing=(2.0, 2.0, 2.0), grid=(32, 32, 32)))
        assert np.linalg.norm(finer.affine[:3, :3], axis=0) == pytest.approx([2.0] * 3)
        assert np.asarray(finer.extent) == pytest.approx(2 * np.asarray(native.extent), abs=3)
        assert finer.images.min() == 0

    def test_a_fixed_range_maps_raw_values(self, cohort: Path, make_transforms: Make) -> None:
        case = find_cases(cohort)[0]
        volumes = preprocess(case, make_transforms(intensity=IntensityScaling("range", 0.0, 1000.0)))
        raw = np.asarray(nib.load(case.images["T1"]).dataobj)
        assert volumes.images[0].max() / 65535 == pytest.approx(raw.max() / 1000, abs=1e-4)
        assert volumes.images[0][0, 0, 0] == 0

    def test_a_head_larger_than_the_grid_is_reported(self, cohort: Path, make_transforms: Make) -> None:
        volumes = preprocess(find_cases(cohort)[0], make_transforms(grid=(8, 8, 8)))
        assert volumes.images.shape == (4, 8, 8, 8)
        assert max(volumes.extent) > 8


class TestRefusals:
    def test_a_damaged_file_is_not_read_by_another_reader(self, cohort: Path, make_transforms: Make) -> None:
        case = find_cases(cohort)[0]
        path = case.images["T1"]
        content = bytearray(path.read_bytes())
        content[-6] ^= 0xFF  # the CRC: nibabel and MONAI load this without a word
        path.write_bytes(content)
        with pytest.raises(DataError, match=path.name):
            preprocess(case, make_transforms())

    def test_an_empty_head_names_the_case(self, cohort: Path, make_transforms: Make) -> None:
        case = find_cases(cohort)[0]
        for path in case.images.values():
            rewrite(path, np.zeros_like)
        with pytest.raises(DataError, match=rf"{case.case_id}: expected a head"):
            preprocess(case, make_transforms())

    def test_a_constant_volume_names_the_file(self, cohort: Path, make_transforms: Make) -> None:
        case = find_cases(cohort)[0]
        rewrite(case.images["FLAIR"], lambda data: (data > 0).astype(np.int16) * 7)
        with pytest.raises(DataError, match=r"t2f.nii.gz: expected different intensities .* got 7"):
            preprocess(case, make_transforms())

    @pytest.mark.parametrize("fault", ["shape", "affine"])
    def test_volumes_on_different_grids_name_both_files(
        self, cohort: Path, make_transforms: Make, fault: str
    ) -> None:
        case = find_cases(cohort)[0]
        if fault == "shape":
            rewrite(case.images["T2"], lambda data: data[1:])
        else:
            rewrite(case.images["T2"], lambda data: data, affine=np.diag([4.0, 4.0, 5.0, 1.0]))
        with pytest.raises(DataError, match=r"t2w.nii.gz: expected the voxel grid of .*t1n.nii.gz"):
            preprocess(case, make_transforms())

    def test_a_crop_beyond_the_grid_names_the_key(self, make_transforms: Make) -> None:
        with pytest.raises(ConfigError, match=r"data.crop_size: expected at most data.grid \(16, 16, 16\)"):
            make_transforms(crop_size=(8, 8, 17))


class TestDraws:
    AUGMENT: dict[str, Any] = {"flip": 0.5, "bias_field": 1.0, "gamma": 1.0, "scale": 1.0, "affine": 1.0}  # noqa: RUF012

    @pytest.fixture
    def volume(self, cohort: Path, make_transforms: Make) -> np.ndarray:
        return preprocess(find_cases(cohort)[0], make_transforms()).images[0]

    def test_the_stream_decides_everything(self, volume: np.ndarray, make_transforms: Make) -> None:
        transform = make_transforms(crop_size=(8, 8, 8), augment=self.AUGMENT).build_stage1_transforms(
            train=True
        )
        first, other, again = (transform(volume, rng=np.random.default_rng(s)) for s in (1, 2, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_the_global_random_state_is_left_alone(self, volume: np.ndarray, make_transforms: Make) -> None:
        transform = make_transforms(crop_size=(8, 8, 8), augment=self.AUGMENT).build_stage1_transforms(
            train=True
        )
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        transform(volume, rng=np.random.default_rng(0))
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])

    @pytest.mark.parametrize("whole", [False, True])
    def test_samples_are_plain_tensors_in_range_with_an_exact_background(
        self, volume: np.ndarray, make_transforms: Make, whole: bool
    ) -> None:
        transform = make_transforms(crop_size=(8, 10, 12), augment=self.AUGMENT).build_stage1_transforms(
            train=True
        )
        for seed in range(8):
            sample = transform(volume, rng=np.random.default_rng(seed), whole=whole)
            assert type(sample) is torch.Tensor
            assert sample.dtype == torch.float32
            assert sample.shape == ((1, 16, 16, 16) if whole else (1, 8, 10, 12))
            assert sample.min() >= 0.0
            assert sample.max() <= 1.0
            if whole:
                assert (sample == 0).float().mean() > 0.3

    def test_a_flip_mirrors_left_and_right(self, volume: np.ndarray, make_transforms: Make) -> None:
        transform = make_transforms(augment={"flip": 1.0}).build_stage1_transforms(train=True)
        sample = transform(volume, rng=np.random.default_rng(0))
        assert torch.equal(sample, dequantise(volume)[None].flip(1))

    def test_evaluation_changes_nothing(self, volume: np.ndarray, make_transforms: Make) -> None:
        transform = make_transforms(crop_size=(8, 8, 8), augment=self.AUGMENT).build_stage1_transforms(
            train=False
        )
        assert torch.equal(transform(volume), dequantise(volume)[None])

    def test_crops_show_the_head(self) -> None:
        volume = np.zeros((40, 40, 40), dtype=np.uint16)
        volume[4:14, 20:30, 25:35] = 9
        for seed in range(50):
            crop = crop_around_foreground(volume, (12, 12, 12), np.random.default_rng(seed))
            assert crop.shape == (12, 12, 12)
            assert crop.any()

    def test_a_crop_of_background_ends_and_a_short_axis_comes_whole(self) -> None:
        crop = crop_around_foreground(np.zeros((6, 20, 20), np.uint16), (8, 8, 8), np.random.default_rng(0))
        assert crop.shape == (6, 8, 8)


def test_quantisation_keeps_both_ends_and_loses_little() -> None:
    values = np.linspace(0, 1, 100_001, dtype=np.float32)
    restored = dequantise(quantise(values)).numpy()
    assert restored[0] == 0.0
    assert restored[-1] == 1.0
    assert np.abs(restored - values).max() < 8e-6


def test_the_fingerprint_tells_preprocessing_apart_but_not_augmentation(make_transforms: Make) -> None:
    same = [make_transforms(), make_transforms(crop_size=(8, 8, 8), augment={"flip": 0.5})]
    others = [
        make_transforms(spacing=(1.0, 1.0, 1.0)),
        make_transforms(grid=(16, 16, 8)),
        make_transforms(intensity=IntensityScaling("percentile", 0.0, 99.0)),
    ]
    assert len({t.fingerprint for t in same}) == 1
    assert len({t.fingerprint for t in [*same, *others]}) == 4


class TestPairs:
    """What belongs together is moved together, and only sources change their intensities."""

    OFF: ClassVar = dict.fromkeys(
        ("flip_prob", "bias_field_prob", "gamma_prob", "scale_prob", "affine_prob"), 0.0
    )

    def pair(self, side: int = 16) -> Pair:
        """All volumes show the same box of tissue, brighter in one half."""
        volume = torch.zeros(1, side, side, side)
        volume[:, 3:-3, 4:-4, 5:-5] = 0.4
        volume[:, side // 2 : -3, 4:-4, 5:-5] = 0.8
        absent = torch.zeros_like(volume)
        return Pair(
            images=torch.cat([volume, volume]),
            sources=torch.cat([volume, absent, volume]),
            region=volume > 0.5,
        )

    def drawn(
        self, pair: Pair, seed: int = 0, crop: tuple[int, int, int] | None = None, **chances: float
    ) -> Pair:
        builder = TransformBuilder(
            spacing=None, grid=(16, 16, 16), crop_size=None, augment=Augmentation(**self.OFF | chances),
            intensity=IntensityScaling(mode="range", lower=0.0, upper=1.0),
        )  # fmt: skip
        window, change = builder.build_pair_transforms(crop).draw(
            pair.region.shape[1:], np.random.default_rng(seed)
        )
        cut = (..., *window)
        return change(Pair(images=pair.images[cut], sources=pair.sources[cut], region=pair.region[cut]))

    @pytest.mark.parametrize("crop", [None, (8, 12, 10)])
    def test_turning_moves_everything_alike(self, crop: tuple[int, int, int] | None) -> None:
        pair = self.pair()
        made = self.drawn(pair, crop=crop, affine_prob=1.0, flip_prob=0.5)
        assert made.region.shape == (1, *(crop or (16, 16, 16)))
        assert made.region.dtype == torch.bool
        assert made.images.shape[1:] == made.sources.shape[1:] == made.region.shape[1:]
        for volume in (made.images[1], made.sources[0], made.sources[2]):
            assert torch.equal(volume, made.images[0])
        assert not made.sources[1].any()
        if crop is None:
            assert not torch.equal(made.images, pair.images)
        # Nearest and linear interpolation differ by half a voxel, at edges.
        inside = made.images[0] > 0.6
        assert (inside != made.region[0]).float().mean() < 0.1

    def test_intensities_change_in_each_source_by_itself_and_never_in_what_is_learnt(self) -> None:
        pair = self.pair()
        made = self.drawn(pair, gamma_prob=1.0, bias_field_prob=1.0)
        assert torch.equal(made.images, pair.images)
        assert torch.equal(made.region, pair.region)
        assert not torch.equal(made.sources[0], made.sources[2])
        assert torch.equal(made.sources > 0, pair.sources > 0), "the background stays exactly 0"
        assert 0 <= made.sources.min() <= made.sources.max() <= 1

    def test_a_flip_mirrors_all(self) -> None:
        pair = self.pair()
        made = self.drawn(pair, flip_prob=1.0)
        for name in ("images", "sources", "region"):
            assert torch.equal(getattr(made, name), getattr(pair, name).flip(1)), name

    @pytest.mark.parametrize("chances", [{}, {"affine_prob": 1.0, "gamma_prob": 0.5, "scale_prob": 0.5}])
    def test_the_stream_decides_everything(self, chances: dict[str, float]) -> None:
        one, same, other = (self.drawn(self.pair(), seed, (8, 8, 8), **chances) for seed in (1, 1, 2))
        assert torch.equal(one.sources, same.sources)
        assert torch.equal(one.images, same.images)
        assert not torch.equal(one.images, other.images)
