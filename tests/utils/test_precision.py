"""Where bf16 is fast, by what torch reports of a device."""

from __future__ import annotations

import pytest
import torch

from sam4ir.utils.precision import bf16_support, number_format, slow_format

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def pretend(monkeypatch: pytest.MonkeyPatch, capability: str, amx: bool, avx512_bf16: bool) -> None:
    """Let torch report a CPU."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    listed = {"amx_bf16": amx, "avx512_bf16": avx512_bf16}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: listed, raising=False)


@pytest.mark.parametrize(
    ("capability", "amx", "avx512_bf16", "fast"),
    [
        ("AVX512", True, True, True),
        ("AVX512", False, True, True),
        ("AVX512", False, False, False),  # Skylake-X, Cascade Lake
        ("AVX2", False, False, False),
        ("DEFAULT", False, False, False),
        ("SVE256", False, False, False),
    ],
)
def test_a_cpu_is_fast_in_bf16_with_amx_or_avx512_bf16(
    monkeypatch: pytest.MonkeyPatch, capability: str, amx: bool, avx512_bf16: bool, fast: bool
) -> None:
    pretend(monkeypatch, capability, amx, avx512_bf16)
    assert bf16_support(CPU).fast is fast
    assert number_format("auto", CPU) == ("bf16" if fast else "fp32")
    assert ("1.5 to 2 times" in slow_format("bf16", CPU)) is not fast
    for asked in ("fp32", "bf16", "fp16"):
        assert number_format(asked, CPU) == asked
    assert slow_format("fp32", CPU) == ""


@pytest.mark.parametrize("lacks", ["get_capabilities", "_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_a_torch_that_lacks_a_function_is_asked_by_the_others(monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    for fast in (True, False):
        pretend(monkeypatch, "AVX512", fast, fast)
        monkeypatch.delattr(torch.cpu, lacks)
        assert bf16_support(CPU).fast is fast


@pytest.mark.parametrize(("limit", "fast"), [("AVX512_CORE", False), ("avx2", False), ("AVX512_CORE_AMX", True)])
def test_a_limit_of_onednn_counts(monkeypatch: pytest.MonkeyPatch, limit: str, fast: bool) -> None:
    pretend(monkeypatch, "AVX512", True, True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert bf16_support(CPU).fast is fast


@pytest.mark.parametrize(
    ("capability", "fast"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((8, 9), True), ((12, 0), True)]
)
def test_a_gpu_is_fast_in_bf16_from_cuda_8_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert bf16_support(CUDA).fast is fast
    assert number_format("auto", CUDA) == ("bf16" if fast else "fp32")
    assert bool(slow_format("bf16", CUDA)) is not fast
    assert slow_format("fp16", CUDA) == ""


def test_other_devices_stay_in_fp32() -> None:
    assert number_format("auto", torch.device("mps")) == "fp32"
