"""Patients: one head in all modalities, the same whatever is made beside them, each step under its control."""

from typing import Any

import numpy as np
import pytest
import torch

from prod9.config.schema import (
    FSQModelConfig,
    LabelConditionalModelConfig,
    MaskingConfig,
    SamplerConfig,
    SlidingWindowSection,
)
from prod9.errors import ConfigError
from prod9.models.factory import ModelFactory
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.pipelines.patients import GeneratedPatient, PatientPipeline
from prod9.pipelines.placement import head_of
from prod9.pipelines.segmentation import PlacedSegmentation
from tests.pipelines.test_translation import GRID, LABELS
from tests.pipelines.test_translation import build as build_translator


def build_first(grid: tuple[int, int, int] = GRID, labels: dict[str, int] = LABELS) -> MaskGiTPipeline:
    torch.manual_seed(0)
    model = FSQModelConfig(levels=(5, 5), num_channels=(4, 4), num_res_blocks=(1, 1), norm_num_groups=2)
    decoder = ModelFactory.create_transformer(
        LabelConditionalModelConfig(embed_dim=16, num_blocks=1, num_heads=2), levels=model.levels
    )
    torch.nn.init.normal_(decoder.head.weight)
    return MaskGiTPipeline(
        decoder=decoder,
        autoencoder=ModelFactory.create_inference_wrapper(
            ModelFactory.create_autoencoder(model), SlidingWindowSection()
        ),
        sampler=ModelFactory.create_sampler(SamplerConfig(steps=3, order="random"), MaskingConfig()),
        label_map=labels,
        grid=grid,
        affine=np.diag([2.0, 2.0, 2.0, 1.0]),
    )


class RecordingControl:
    """Stands in for a ControlPipeline: draws as its generator does, and remembers what it was told."""

    def __init__(self, generator: MaskGiTPipeline, *, needs_seg: bool = True) -> None:
        self.generator, self.needs_seg = generator, needs_seg
        self.calls: list[tuple[Any, list[int]]] = []

    def sample_tokens(
        self, condition: Any, *, segs: Any, labels: list[int], **arguments: Any
    ) -> torch.Tensor:
        self.calls.append((segs, labels))
        return self.generator.sample_tokens(condition, **arguments)


@pytest.fixture(scope="module")
def pipeline() -> PatientPipeline:
    return PatientPipeline(first=build_first(), translator=build_translator())


def segmentation(corner: int) -> PlacedSegmentation:
    labels = np.zeros(GRID, dtype=np.uint8)
    labels[corner : corner + 2, 3:6, 2:5] = 2
    affine = np.eye(4)
    affine[:3, 3] = corner
    return PlacedSegmentation(labels, affine, "case", 0.0)


def make(pipeline: PatientPipeline, indices: list[int], **kwargs: Any) -> list[GeneratedPatient]:
    return list(pipeline.generate(indices, **{"seed": 3, **kwargs}))


def same(one: GeneratedPatient, other: GeneratedPatient) -> bool:
    return all(np.array_equal(one.images[name], other.images[name]) for name in LABELS)


def test_every_modality_shows_one_head(pipeline: PatientPipeline) -> None:
    for k, patient in enumerate(make(pipeline, [0, 1])):
        assert (patient.index, patient.seed) == (k, 3 + k)
        assert set(patient.images) == set(LABELS)
        head = patient.images[pipeline.start_with] != 0
        for image in patient.images.values():
            assert image.shape == GRID
            assert image.dtype == np.float32
            assert 0.0 <= image.min() < image.max() <= 1.0
            assert not image[~head].any()
        assert patient.seg is None
        np.testing.assert_array_equal(patient.affine, np.diag([2.0, 2.0, 2.0, 1.0]))


def test_a_patient_depends_on_its_seed_alone(pipeline: PatientPipeline) -> None:
    together = make(pipeline, [0, 1, 2])
    (alone,) = make(pipeline, [2])
    (again,) = make(pipeline, [0], seed=together[1].seed)
    assert same(alone, together[2])
    assert same(again, together[1])
    assert not same(together[0], together[1])


def test_the_first_modality_is_that_of_generate_label() -> None:
    first = build_first()
    pipeline = PatientPipeline(first=first, translator=build_translator(), start_with="FLAIR")
    assert pipeline.order == ["FLAIR", "T1", "T1ce", "T2"]
    (patient,) = make(pipeline, [1])
    volume = next(first.generate("FLAIR", num_samples=1, seed=4)).data
    expected = np.where(head_of(volume), np.maximum(volume, 1 / 65535), 0.0)
    np.testing.assert_allclose(patient.images["FLAIR"], expected, atol=1e-7)


def test_each_modality_is_made_from_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    translator = build_translator(max_sources=2)
    pipeline = PatientPipeline(first=build_first(), translator=translator)
    seen: list[tuple[list[str], str, int]] = []
    inner = translator.translate

    def spy(sources: Any, target: str, *, seed: int, **kwargs: Any) -> Any:
        seen.append((list(sources), target, seed))
        return inner(sources, target, seed=seed, **kwargs)

    monkeypatch.setattr(translator, "translate", spy)
    make(pipeline, [0])
    assert [(s, t) for s, t, _ in seen] == [
        (["T2"], "T1"),
        (["T2", "T1"], "T1ce"),
        (["T2", "T1"], "FLAIR"),  # no more sources than the model was trained on
    ]
    assert len({seed for _, _, seed in seen}) == 3, "modalities share no noise"


def test_each_step_follows_the_segmentation_of_its_patient() -> None:
    first, translator = build_first(), build_translator()
    controls = [RecordingControl(first), RecordingControl(translator.generator)]
    pipeline = PatientPipeline(
        first=first, translator=translator, first_control=controls[0], translator_control=controls[1]
    )
    segs = [segmentation(1), segmentation(4)]
    patients = make(pipeline, [0, 1, 2], segs=segs)
    assert len(controls[0].calls) == 3
    assert len(controls[1].calls) == 9
    assert [labels for _, labels in controls[1].calls[:3]] == [[LABELS[name]] for name in pipeline.order[1:]]
    for patient in patients:
        seg = segs[patient.index % 2]
        assert patient.seg is not None
        assert np.array_equal(patient.seg, seg.seg)
        np.testing.assert_array_equal(patient.affine, seg.affine)
        for told, _ in controls[0].calls[patient.index : patient.index + 1]:
            assert np.array_equal(told, seg.seg[None])
    # What steers changes nothing here, so neither does the patient: seeds are those of the models alone.
    bare = PatientPipeline(first=first, translator=translator)
    assert same(patients[0], make(bare, [0])[0])


def test_segmentations_and_control_go_together(pipeline: PatientPipeline) -> None:
    with pytest.raises(ConfigError, match="add --control RUN"):
        make(pipeline, [0], segs=[segmentation(1)])
    first = build_first()
    translator = build_translator()
    steered = PatientPipeline(first=first, translator=translator, first_control=RecordingControl(first))
    with pytest.raises(ConfigError, match="add --seg DIR"):
        make(steered, [0])
    by_label = RecordingControl(first, needs_seg=False)
    unsteered = PatientPipeline(first=first, translator=translator, first_control=by_label)
    assert make(unsteered, [0])
    assert by_label.calls == [(None, [LABELS[unsteered.start_with]])]


def test_models_that_don_t_belong_together_are_refused() -> None:
    translator = build_translator()
    with pytest.raises(ConfigError, match="one grid and the same modalities"):
        PatientPipeline(first=build_first((8, 8, 8)), translator=translator)
    with pytest.raises(ConfigError, match="one grid and the same modalities"):
        PatientPipeline(first=build_first(labels={"T1": 0, "T2": 1}), translator=translator)
    with pytest.raises(ConfigError, match="label_conditional"):
        PatientPipeline(first=translator.generator, translator=translator)
    with pytest.raises(ConfigError, match="first: expected one of T1, T1ce"):
        PatientPipeline(first=build_first(), translator=translator, start_with="PET")
    with pytest.raises(ConfigError, match="sources"):
        PatientPipeline(first=build_first(), translator=build_translator(min_sources=2))


def test_the_head_is_the_largest_part_with_its_holes() -> None:
    volume = np.full((12, 12, 12), 0.01, np.float32)
    volume[2:9, 2:9, 2:9] = 0.5
    volume[4:6, 4:6, 4:6] = 0.0  # ventricles are dark
    volume[11, 11, 11] = 0.9
    expected = np.zeros(volume.shape, bool)
    expected[2:9, 2:9, 2:9] = True
    assert np.array_equal(head_of(volume), expected)
    assert head_of(np.zeros((3, 3, 3), np.float32)).all(), "nothing is head: nothing is cut away"
