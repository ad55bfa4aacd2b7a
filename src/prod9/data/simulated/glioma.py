"""A simulated glioma: necrotic core, enhancing rim, oedema in white matter, and displaced tissue."""

from dataclasses import dataclass

import numpy as np

from prod9.data.simulated.anatomy import Array, Grid, Tissue, sample, sigmoid
from prod9.data.simulated.template import load_template

NECROSIS, OEDEMA, ENHANCING = 1, 2, 3
_LOWEST = -25.0
"""Gliomas of the cerebellum and the brain stem, below, are rare in adults."""


@dataclass(frozen=True)
class Shares:
    """Share of each compartment in the voxels of the brain, float32 ``[n]``."""

    necrosis: Array
    enhancing: Array
    oedema: Array

    def labels(self) -> Array:
        """Return the label of the compartment that fills more than half of a voxel, uint8 ``[n]``."""
        seg = np.where(self.necrosis + self.enhancing + self.oedema > 0.5, OEDEMA, 0).astype(np.uint8)
        core = self.necrosis + self.enhancing > 0.5
        seg[core] = np.where(self.necrosis > self.enhancing, NECROSIS, ENHANCING)[core]
        return seg


@dataclass(frozen=True)
class Glioma:
    """Place and size of a glioma.

    Attributes:
        centre: template position ``[3]``.
        radius: of the core, in mm.
        reach: of the oedema, in core radii.
        necrosis: radius of the necrosis, in core radii; above 1 nothing enhances, as in lower grades.
        push: displacement of the tissue at the core, in core radii.
    """

    centre: Array
    radius: float
    reach: float
    necrosis: float
    push: float

    @classmethod
    def draw(cls, position: Array, rng: np.random.Generator) -> "Glioma":
        """Draw one, centred in white matter of ``position [3 H W D]`` that is deep enough for most of it."""
        radius = rng.uniform(9, 19)
        coarse = position[:, ::2, ::2, ::2]
        template = load_template()
        white, depth = (sample(template, values, coarse) for values in (template.white, template.depth))
        allowed = (white > 0.5) & (depth > 0.7 * radius) & (coarse[2] > _LOWEST)
        candidates = coarse[:, allowed]
        return cls(
            centre=candidates[:, rng.integers(candidates.shape[1])],
            radius=radius,
            reach=rng.uniform(1.5, 2.3),
            necrosis=rng.uniform(0.45, 0.78) if rng.random() < 0.88 else 1.5,
            push=rng.uniform(0.1, 0.35),
        )

    def displace(self, position: Array) -> Array:
        """Push surrounding tissue outward: sample nearer to the centre, fading over two radii."""
        offset = position - self.centre[:, None, None, None]
        distance = np.sqrt((offset**2).sum(0)) + 1e-3
        pull = self.push * self.radius * np.exp(-((distance / (1.5 * self.radius)) ** 2))
        return self.centre[:, None, None, None] + offset * np.maximum(1 - pull / distance, 0.05)

    def shares(self, grid: Grid, tissue: Tissue, rng: np.random.Generator) -> Shares:
        """Return an irregular core around its necrosis, and oedema along white matter; edges blur over a voxel."""

        def irregular(*scales_and_strengths: tuple[float, float]) -> Array:
            noise = sum(strength * grid.smooth_noise(scale, rng) for scale, strength in scales_and_strengths)
            return distance * np.exp(np.asarray(noise)[tissue.mask])

        distance = np.sqrt(((tissue.position - self.centre[:, None]) ** 2).sum(0)) / self.radius
        edge = (0.3 * grid.spacing + 0.4) / self.radius
        core = irregular((14, 0.16))
        heart = core * np.exp(0.12 * grid.smooth_noise(9, rng)[tissue.mask])
        halo = irregular((24, 0.2), (11, 0.1))
        # Oedema follows white matter tracts and stops at cortex and fluid.
        reach = self.reach * (0.35 + 0.65 * np.clip(tissue.white / 0.6, 0, 1))
        solid = sigmoid((1 - core) / edge) * (tissue.ventricles < 0.5)
        necrosis = solid * sigmoid((self.necrosis - heart) / edge)
        wet = sigmoid((reach - halo) / (2 * edge)) * sigmoid((0.6 - tissue.fluid) / 0.08) * (1 - solid)
        return Shares(necrosis=necrosis, enhancing=solid - necrosis, oedema=wet)
