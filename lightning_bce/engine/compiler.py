"""Whether kernels can be generated for a device, and if not, why."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil

import torch


@functools.cache
def reason_against(device: str) -> str | None:
    """Return why no kernel can be generated for a type of device, or None."""
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1" or os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return "torch.compile is switched off by the environment (TORCHDYNAMO_DISABLE, TORCH_COMPILE_DISABLE)"
    if device == "cpu":
        named = os.environ.get("CXX")
        if any(shutil.which(name) for name in ([named] if named else ["g++", "clang++", "c++", "cl"])):
            return None
        return (
            f"there is no C++ compiler ({named or 'g++ or clang++'}), which torch.compile needs on a CPU. Install one"
        )
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed, which torch.compile needs on a GPU. Install it"
        if torch.cuda.get_device_capability() < (7, 0):
            return "torch.compile needs a GPU of compute capability 7.0 or later"
        return None
    return f"there are no kernels for the device type {device!r}; only for cpu and cuda"
