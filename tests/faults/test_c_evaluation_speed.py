"""Pairs of large volumes take seconds, are kept as they come, and say how far they are off a terminal too."""

import json
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from prod9.cli.judge.reporting import PlainLines
from prod9.evaluation import paired_files
from prod9.evaluation.paired import regional_scores
from prod9.evaluation.sets.appearance import FREQUENCIES, power_spectrum
from prod9.evaluation.sets.kept_pairs import FILE
from prod9.measures.metrics import ms_ssim3d, ssim3d
from prod9.measures.ssim import Window, blur, compare_regions, slabs
from tests.cli.test_evaluate import evaluate, write_patients


def pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = F.avg_pool3d(torch.rand(1, 1, *shape, generator=generator), 3, stride=1, padding=1)
    return (target + 0.05 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


def whole_maps(x, y, window, around):
    """The maps as convolutions of the whole volumes make them."""
    kernel = window.kernel()

    def filtered(z):
        for axis in range(3):
            shape = [1, 1, 1]
            shape[axis] = len(kernel)
            z = F.conv3d(z, kernel.view(1, 1, *shape))
        return z

    x, y = (F.pad(v, [around] * 6) for v in (x, y))
    mu_x, mu_y = filtered(x), filtered(y)
    var_x, var_y = filtered(x * x) - mu_x**2, filtered(y * y) - mu_y**2
    c1, c2 = (0.01 * window.data_range) ** 2, (0.03 * window.data_range) ** 2
    structure = (2 * (filtered(x * y) - mu_x * mu_y) + c2) / (var_x.clamp_min(0) + var_y.clamp_min(0) + c2)
    return (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1), structure


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(11, 45)] * 3),
    size=st.sampled_from([1, 3, 7, 11]),
    padded=st.booleans(),
    turned=st.booleans(),
)
def test_c_slabs_are_parts_of_the_whole_maps(shape, size, padded, turned):
    x, y = pair(shape)
    if turned:  # any strides
        x, y = (v.transpose(2, 4).contiguous().transpose(2, 4) for v in (x, y))
    window, around = Window(size, 1.5, 1.0), size // 2 if padded else 0
    parts = list(slabs(x[0], y[0], window, around=around))
    assert [rows.start for rows, _, _ in parts[1:]] == [rows.stop for rows, _, _ in parts[:-1]]
    made = [torch.cat([part[k] for part in parts], 1) for k in (1, 2)]
    for one, other in zip(made, whole_maps(x, y, window, around), strict=True):
        torch.testing.assert_close(one, other[0], atol=2e-5, rtol=1e-4)


def test_c_regions_of_one_pass_score_as_each_by_itself():
    x, y = pair((40, 36, 33))
    generator = torch.Generator().manual_seed(1)
    masks = [None, *(torch.rand(y.shape, generator=generator) > share for share in (0.5, 0.99)), y > 2]
    found = compare_regions(x, y, masks, window=Window(11, 1.5, 1.0))
    for mask, own in zip(masks, found, strict=True):
        torch.testing.assert_close(own.ssim, ssim3d(x, y, mask=mask), equal_nan=True)
        torch.testing.assert_close(own.ms_ssim, ms_ssim3d(x, y, mask=mask), equal_nan=True)
    assert found[3].ssim.isnan().all()


def test_c_a_window_of_one_voxel_and_a_batch_of_channels():
    x = torch.rand(2, 3, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blur(x[0], torch.ones(1)), x[0])
    torch.testing.assert_close(ssim3d(x, x.flip(0))[0], ssim3d(x.flip(0), x)[0])


def test_c_a_pair_of_a_million_voxels_takes_a_second():
    made, target = pair((120, 120, 80))
    seg = (target > 0.55).long()
    began = time.process_time()
    regional_scores(made, target, seg)
    assert time.process_time() - began < 3.0  # convolutions of whole volumes took 12


@pytest.mark.parametrize("shape", [(12, 12, 12), (13, 20, 17), (20, 9, 14)])
def test_c_the_spectrum_of_half_the_frequencies_is_that_of_all(shape):
    volume = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    windows = [torch.hann_window(side + 2, periodic=False)[1:-1] for side in shape]
    taper = windows[0][:, None, None] * windows[1][:, None] * windows[2]
    power = torch.fft.fftn((volume * taper).double(), norm="ortho").abs().square()
    axes = torch.meshgrid(*[torch.fft.fftfreq(side) for side in shape], indexing="ij")
    shell = (torch.stack([axis.square() for axis in axes]).sum(0).sqrt() * 2 * FREQUENCIES).round().long()
    row = power_spectrum(volume)
    for k in range(FREQUENCIES):
        if (shell == k).any():
            assert row[k].item() == pytest.approx(
                10 * np.log10(power[shell == k].mean().item() + 1e-12), abs=1e-3
            )


def test_c_pairs_that_were_scored_are_kept_and_others_are_not(tmp_path, monkeypatch):
    real = write_patients(tmp_path / "real", 3, names=("t1n",))
    made = write_patients(tmp_path / "made", 3, names=("t1n",), noise=20.0)
    scored, score = [], paired_files.regional_scores

    def interrupted(pred, *rest, **options):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(pred.sum().item())
        return score(pred, *rest, **options)

    common = ("images", real, made, "--paired", "--replicates", 0)
    monkeypatch.setattr(paired_files, "regional_scores", interrupted)
    ran = evaluate(*common, "-o", tmp_path / "out", code=130)
    assert "continues from here" in ran.err
    kept = tmp_path / "out" / FILE
    assert len(kept.read_text().splitlines()) == 2
    kept.write_text(kept.read_text() + '{"key": "cut o')
    # The second pair is another one now: a file that changed is scored anew.
    changed = next((made / "BraTS-GLI-00001-000").glob("*t1n*"))
    changed.write_bytes(next((made / "BraTS-GLI-00002-000").glob("*t1n*")).read_bytes())
    scored.clear()
    monkeypatch.setattr(
        paired_files,
        "regional_scores",
        lambda pred, *rest, **options: scored.append(1) or score(pred, *rest, **options),
    )
    evaluate(*common, "-o", tmp_path / "out")
    assert len(scored) == 2
    assert not kept.exists()
    monkeypatch.undo()
    evaluate(*common, "-o", tmp_path / "whole")
    results = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("out", "whole")]
    assert results[0]["cases"] == results[1]["cases"]
    assert results[0]["scores"] == results[1]["scores"]


def test_c_off_a_terminal_there_are_lines_now_and_then(capsys):
    often, seldom = PlainLines(seconds=0.0), PlainLines(seconds=3600.0)
    for done in (1, 2, 3):
        often("Pairs", done, 3)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["Pairs: 1 of 3", "Pairs: 2 of 3", "Pairs: 3 of 3"]
    assert "s left" in lines[0]
    for done in (1, 2, 3):
        seldom("Pairs", done, 3)
    assert capsys.readouterr().err.startswith("Pairs: 3 of 3")
