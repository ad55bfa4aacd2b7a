"""Space to depth and back for volumes, without parameters."""

from prod9.types import Volume, VolumeOut


def fold_voxels(x: Volume, n: int) -> VolumeOut:
    """Move n³ neighbouring voxels into channels: ``[B C H W D]`` → ``[B C·n³ H/n W/n D/n]``."""
    if n == 1:
        return x
    B, C, H, W, D = x.shape
    x = x.reshape(B, C, H // n, n, W // n, n, D // n, n).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(B, C * n**3, H // n, W // n, D // n)


def unfold_voxels(x: Volume, n: int) -> VolumeOut:
    """Undo `fold_voxels`."""
    if n == 1:
        return x
    B, C, h, w, d = x.shape
    x = x.reshape(B, C // n**3, n, n, n, h, w, d).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(B, C // n**3, h * n, w * n, d * n)
