import pytest
import torch
from torch import nn

from prod9.errors import ConfigError
from prod9.evaluation.judges import file_features
from prod9.evaluation.judges.features import MAX_SLICES, slice_places
from prod9.evaluation.judges.file_features import load_file_features


class Stub3D(nn.Module):
    """Stands for MedicalNet: an eighth of the sides, three channels."""

    def __init__(self, *, weights):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.AvgPool3d(8), nn.Conv3d(1, 3, 1))


class Stub2D(nn.Module):
    """Stands for RadImageNet: five channels of slices."""

    def __init__(self, *, weights):
        super().__init__()
        self.features = nn.Conv2d(3, 5, 3)


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    monkeypatch.setattr(file_features, "MedicalNetDistance", Stub3D)
    monkeypatch.setattr(file_features, "RadImageNetDistance", Stub2D)


@torch.no_grad()
def test_a_3d_network_gives_rows_and_slabs(tmp_path):
    file = tmp_path / "resnet_10_23dataset.pth"
    file.write_bytes(b"weights")
    extractor = load_file_features(str(file))
    x = torch.rand(2, 1, 32, 40, 24)
    assert extractor(x).shape == (2, 3)
    assert [tuple(p.shape) for p in extractor.planes(x)] == [(2, n, 15) for n in (2, 3, 2)]
    # Each volume is standardised: brightness and contrast don't count.
    torch.testing.assert_close(extractor(3 * x + 1), extractor(x), atol=1e-4, rtol=0)
    name, digest = extractor.name.rsplit("-", 1)
    assert name == "medicalnet_resnet10_23datasets"
    assert len(digest) == 12


@torch.no_grad()
def test_a_2d_network_sees_slices(tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"weights")
    extractor = load_file_features(f"radimagenet_resnet50={tmp_path / 'mine.safetensors'}")
    x = torch.rand(1, 1, 30, 20, 10)
    planes = extractor.planes(x)
    assert [tuple(p.shape) for p in planes] == [(1, n, 5) for n in (16, 12, 6)]
    torch.testing.assert_close(extractor(x), torch.cat([p.mean(1) for p in planes], 1))


def test_what_is_no_known_network_is_refused(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"weights")
    with pytest.raises(ConfigError, match="does not exist"):
        load_file_features(str(tmp_path / "none.pth"))
    for spec in (str(tmp_path / "x.pth"), f"alex={tmp_path / 'x.pth'}"):
        with pytest.raises(ConfigError, match="say which they are"):
            load_file_features(spec)


@pytest.mark.parametrize("length", [1, 2, 7, 28, 240])
def test_slices_are_central_and_within(length):
    places = slice_places(length)
    assert len(places) == min(max(round(0.6 * length), 1), MAX_SLICES)
    assert places == sorted(set(places))
    assert places[0] >= int(0.2 * length)
    assert places[-1] < max(0.8 * length, 1)
