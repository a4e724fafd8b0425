"""Where bfloat16 pays: the processors and GPUs that compute in it, and the number format that `auto` stands for."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

AUTO = "auto"
LEAST_CUDA = (8, 0)  # compute capability of Ampere
# oneDNN, which computes torch's products on a CPU, may be limited to instruction sets without bf16 by the environment
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")


class Support(NamedTuple):
    """Whether a device computes faster in bf16 than in fp32, and what shows it, for a message."""

    fast: bool
    reason: str


def bf16_support(device: torch.device) -> Support:
    """Return whether bf16 is fast on a device: CUDA 8.0 and later, a CPU with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return _of_cuda(torch.cuda.get_device_capability(device))
    if device.type == "cpu":
        return _of_cpu()
    return Support(False, f"bf16 was never measured on {device.type}")


def number_format(asked: str, device: torch.device) -> str:
    """Return the number format to compute in: bf16 or fp32 for `auto`, otherwise the one that is asked for."""
    if asked != AUTO:
        return asked
    if bf16_support(device).fast:
        return "bf16"
    return "fp32"


def slow_format(asked: str, device: torch.device) -> str:
    """Return why a format costs more than fp32 on this device, and how much more; '' where it does not."""
    if asked == "fp16" and device.type == "cpu":
        return "torch computes fp16 slowly on a CPU: a step took up to 20 times as long as in fp32"
    if asked != "bf16":
        return ""
    fast, reason = bf16_support(device)
    if fast:
        return ""
    cost = "a step takes longer than in fp32"
    if device.type == "cpu":
        cost = "a step takes 1.5 to 2 times as long as in fp32 with AVX-512, and up to 17 times without it"
    return f"{reason}, so {cost}"


def _of_cuda(capability: tuple[int, int]) -> Support:
    version = ".".join(map(str, capability))
    if capability >= LEAST_CUDA:
        return Support(True, f"CUDA {version}")
    return Support(False, f"this GPU (CUDA {version}) has no bf16, which CUDA 8.0 brought")


def _of_cpu() -> Support:
    for name in _LIMITS:
        limit = os.environ.get(name, "").upper()
        if limit in _WITHOUT_BF16:
            return Support(False, f"{name}={limit} allows this CPU no bf16")
    capability = torch.backends.cpu.get_cpu_capability()
    names = _instructions() if capability.startswith("AVX512") and torch.backends.mkldnn.is_available() else []
    if names:
        return Support(True, f"this CPU has {' and '.join(names)}")
    return Support(False, f"this CPU ({capability}) has neither AMX nor AVX512-BF16")


def _instructions() -> list[str]:
    """Return the names of the CPU's instructions for bf16."""
    # torch lists the capabilities since 2.9 and has had the two private functions since 2.4
    listed: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    names = []
    for name, key, function in (
        ("AMX", "amx_bf16", "_is_amx_tile_supported"),
        ("AVX512-BF16", "avx512_bf16", "_is_avx512_bf16_supported"),
    ):
        asked = getattr(torch.cpu, function, None)
        if listed.get(key, asked is not None) and (asked is None or asked()):
            names.append(name)
    return names
