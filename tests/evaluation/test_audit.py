import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prod9.errors import DataError
from prod9.evaluation.audit.embeddings import ALL_MIRRORS, VoxelEmbedding
from prod9.evaluation.audit.run import Described, compare, find_nearest, required_held_out
from prod9.evaluation.audit.volumes import AuditSets, run_audit
from prod9.evaluation.sets.volume_sets import BadFiles, find_volumes
from prod9.volumes import read
from tests.evaluation.audit_cohort import head, write_heads

NUM = 20


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("audit")
    write_heads(root / "train", [head(k) for k in range(NUM)])
    write_heads(root / "heldout", [head(100 + k) for k in range(NUM)])
    return root


def audit(cohort, generated, *, heldout="heldout", skip=False, max_share=0.1, false_alarms=0.05):
    sets = AuditSets(*(find_volumes(cohort / part) for part in ("train", heldout)), find_volumes(generated))
    files = (read(entry.path) for entry in sets.train)
    return run_audit(
        sets,
        [VoxelEmbedding.fit(files)],
        false_alarms=false_alarms,
        max_share=max_share,
        bad=BadFiles(skip=skip),
    )


def shifted(x):
    out = np.zeros_like(x)
    out[2:, 2:, 2:] = x[:-2, :-2, :-2]
    return out


def noisy(x):
    return x + 0.02 * np.random.default_rng(0).normal(size=x.shape).astype(np.float32)


DISGUISES = {
    "exact": lambda x: x,
    "flipped": lambda x: x[::-1],
    "turned": lambda x: x[:, ::-1, ::-1],
    "shifted": shifted,
    "scaled": lambda x: 0.6 * x,
    "noisy": noisy,
}


def test_it_finds_disguised_copies_and_leaves_honest_volumes_alone(cohort, tmp_path):
    honest = [head(1000 + k) for k in range(40)]
    copies = [change(head(k)) for change in DISGUISES.values() for k in range(0, NUM, 4)]
    folder = write_heads(tmp_path / "generated", [*honest, *copies])
    result = audit(cohort, folder)
    suspect = {s.generated.case_id for s in result.suspects}
    names = [entry.case_id for entry in result.sets.generated]
    false_alarms = np.mean([name in suspect for name in names[: len(honest)]])
    recall = np.mean([name in suspect for name in names[len(honest) :]])
    assert recall >= 0.95
    assert false_alarms <= 0.05
    assert not result.passed
    # Each points at the patient it was made of.
    sources = {s.generated.case_id: s.train.case_id for s in result.suspects}
    expected = [f"train{k:03d}" for _ in DISGUISES for k in range(0, NUM, 4)]
    pairs = zip(names[len(honest) :], expected, strict=True)
    assert all(sources[name] == source for name, source in pairs if name in sources)


def decoded(x, seed):
    """Return ``x`` as a model overtrained on it would: some 4³ blocks another's, all a little blurred."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand((1, 1, 6, 6, 6), generator=generator) < 0.05
    swapped = F.interpolate(drawn.float(), scale_factor=4)[0, 0].bool().numpy()
    mixed = np.where(swapped, head(3000 + seed), x)
    blurred = F.avg_pool3d(torch.from_numpy(mixed)[None, None], 3, stride=1, padding=1)[0, 0].numpy()
    return 0.75 * mixed + 0.25 * blurred


def test_an_overtrained_model_is_caught_and_an_honest_blurry_one_is_not(cohort, tmp_path):
    caught = audit(cohort, write_heads(tmp_path / "over", [decoded(head(k % 4), k) for k in range(12)]))
    assert caught.share >= 0.75
    assert not caught.passed
    honest = audit(cohort, write_heads(tmp_path / "honest", [decoded(head(2000 + k), k) for k in range(12)]))
    assert honest.passed
    assert caught.comparisons[0].authentic.float().mean() < honest.comparisons[0].authentic.float().mean()


def test_the_share_decides_at_the_limit(cohort, tmp_path):
    folder = write_heads(tmp_path / "half", [head(0), head(1), head(1001), head(1002)])
    assert audit(cohort, folder, max_share=0.5).passed
    assert not audit(cohort, folder, max_share=0.49).passed


def test_overlapping_patients_are_refused_by_name_and_by_content(cohort, tmp_path):
    same = tmp_path / "same"
    write_heads(
        same, [head(100 + k) for k in range(NUM)], names=["train003", *(f"h{k}" for k in range(1, NUM))]
    )
    with pytest.raises(DataError, match=r"train003.*training patients too"):
        AuditSets(find_volumes(cohort / "train"), find_volumes(same), [])
    renamed = write_heads(tmp_path / "renamed", [head(7), *(head(100 + k) for k in range(NUM))])
    with pytest.raises(DataError, match=r"renamed000.*copy of.*train007"):
        audit(cohort, tmp_path / "renamed", heldout=renamed)
    rescaled = write_heads(tmp_path / "rescaled", [0.7 * head(7), *(head(100 + k) for k in range(NUM))])
    with pytest.raises(DataError, match=r"rescaled000.*copy of.*train007"):
        audit(cohort, tmp_path / "renamed", heldout=rescaled)


def test_too_few_held_out_volumes_are_refused_with_the_number_needed(cohort, tmp_path):
    few = write_heads(tmp_path / "few", [head(100 + k) for k in range(5)])
    with pytest.raises(DataError, match=r"at least 19 held-out.*got 5"):
        audit(cohort, few, heldout=few)
    assert audit(cohort, few, heldout=few, false_alarms=0.2).comparisons[0].threshold > 0


def test_bad_files_are_named_and_left_out_only_when_asked(cohort, tmp_path):
    folder = write_heads(tmp_path / "bad", [head(1001), np.full((24, 24, 24), 0.5)])
    (folder / "torn_t1.nii.gz").write_bytes((folder / "bad000_t1.nii.gz").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"bad001.*shows something.*--skip-bad"):
        audit(cohort, folder)
    result = audit(cohort, folder, skip=True)
    assert len(result.sets.generated) == 1
    assert [s["file"].rsplit("/", 1)[1] for s in result.skipped] == ["bad001_t1.nii.gz", "torn_t1.nii.gz"]


def test_the_voxel_embedding_ignores_mirroring_shift_and_scale(tmp_path):
    write_heads(tmp_path, [head(1), head(2)], names=["one", "two"])
    one, two = (read(tmp_path / f"{name}_t1.nii.gz") for name in ("one", "two"))
    embedding = VoxelEmbedding.fit([one, two])
    rows = embedding(one, mirrored=True)
    assert rows.shape == (8, embedding.cells**3)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(8))
    write_heads(tmp_path, [0.5 * shifted(head(1))[::-1]], names=["copy"])
    copy = embedding(read(tmp_path / "copy_t1.nii.gz"), mirrored=True)
    assert ALL_MIRRORS[4] == (0,)
    assert (rows[4] @ copy[0]).item() > 0.999 > 0.9 > (rows[0] @ embedding(two, mirrored=False)[0]).item()


def rows_of(angles):
    angles = torch.tensor(angles)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).reshape(len(angles), -1, 2)


def test_the_nearest_is_found_under_any_mirroring_unless_it_is_excluded():
    references = rows_of([[0.0], [1.0], [2.0]])
    queries = rows_of([[0.4, 2.9], [1.1, 1.9]])
    found = find_nearest(queries, references)
    assert found.index.tolist() == [0, 1]
    torch.testing.assert_close(found.distance, 1 - torch.tensor([0.4, 0.1]).cos())
    excluded = torch.tensor([[True, False, False], [False, True, False]])
    found = find_nearest(queries, references, excluded=excluded)
    assert found.index.tolist() == [1, 2]
    assert found.mirror.tolist() == [0, 1]


def test_p_values_are_ranks_among_the_held_out():
    train = Described(torch.eye(8)[:3, None], list("abc"))
    held_out = Described(F.normalize(torch.eye(8)[:, None].flip(0)[:5] + 0.1, dim=2), list("efghi"))
    generated = Described(torch.stack([torch.eye(8)[:1], held_out.rows[0]]), ["x", "y"])
    result = compare("toy", train=train, held_out=held_out, generated=generated, false_alarms=0.2)
    assert result.p_values.tolist() == pytest.approx([1 / 6, 1.0])
    assert result.suspect.tolist() == [True, False]
    assert 0 < result.threshold <= result.held_out.min()
    assert result.authentic.tolist()[0] is False  # it is the patient a
    with pytest.raises(ValueError, match="at least 19"):
        compare("toy", train=train, held_out=held_out, generated=generated, false_alarms=0.05)


@pytest.mark.parametrize(
    ("share", "embeddings", "needed"), [(0.05, 1, 19), (0.05, 2, 39), (0.1, 1, 9), (0.5, 1, 1)]
)
def test_the_number_of_held_out_volumes_needed(share, embeddings, needed):
    assert required_held_out(share, embeddings) == needed
