"""Toy brains: an ellipsoid with a core whose contrast depends on the class, and lesions in some."""

import pytest
import torch

SIDE = 24


def toy_brains(per_class, *, seed, lesion_share=0.5, side=SIDE):
    """Return volumes [N 1 S S S], labels [N] and lesion masks; the core of class 0 is dark, of 1 bright."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 3, indexing="ij")
    volumes, labels, lesions = [], [], []
    for index in range(2 * per_class):
        label = index % 2
        stretch = 1 + 0.15 * (torch.rand(3, generator=generator) - 0.5)
        radius = torch.stack([(a / s).square() for a, s in zip(axes, stretch, strict=True)]).sum(0).sqrt()
        brain, core = radius < 0.85, radius < 0.45
        x = torch.where(core, 0.25 + 0.5 * label, 0.5) * brain
        x = x + 0.03 * torch.randn(x.shape, generator=generator) * brain
        centre = 0.55 * torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
        distance = torch.stack([(a - c).square() for a, c in zip(axes, centre, strict=True)]).sum(0).sqrt()
        lesion = (distance < 0.22) & brain
        if torch.rand((), generator=generator) >= lesion_share:
            lesion = torch.zeros_like(lesion)
        volumes.append(torch.where(lesion, 0.95, x).clamp(0, 1))
        labels.append(label)
        lesions.append(lesion)
    return torch.stack(volumes)[:, None], torch.tensor(labels), torch.stack(lesions)[:, None]


@pytest.fixture(scope="package")
def brains():
    return toy_brains(16, seed=0)


@pytest.fixture(scope="package")
def held_out():
    return toy_brains(10, seed=1)
