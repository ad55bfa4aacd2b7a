"""The metrics live in :mod:`prod9.measures`."""

from prod9.measures.metrics import CombinedMetric as CombinedMetric
from prod9.measures.metrics import psnr as psnr
from prod9.measures.metrics import ssim3d as ssim3d
from prod9.measures.perceptual import LPIPS as LPIPS
