"""A pretend CUDA device: tensors that say ``cuda:0``, compute on the CPU, and fail where a GPU would.

``pretend_cuda()`` gives such a device for a while. Mixed devices, generators of another device and ``.numpy()`` are
refused, and what would make the host wait for the device is counted by the function of prod9 that asks for it. Speed,
memory and numerics are those of the CPU; ``benchmarks/gpu_suite.py`` measures them where there is a GPU.
"""

from tests.pretend.api import Device, pretend_cuda
from tests.pretend.tensors import MixedDevicesError, PretendTensor

__all__ = ["Device", "MixedDevicesError", "PretendTensor", "pretend_cuda"]
