"""The largest FLOP/s of a device: what its maker states, or what a bare product gives here."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

STATED_TFLOPS = {
    "V100": {"fp16": 125.0, "fp32": 15.7},
    "T4": {"fp16": 65.0, "fp32": 8.1},
    "A10": {"bf16": 125.0, "fp16": 125.0, "fp32": 31.2},
    "A100": {"bf16": 312.0, "fp16": 312.0, "fp32": 19.5},
    "A30": {"bf16": 165.0, "fp16": 165.0, "fp32": 10.3},
    "L4": {"bf16": 121.0, "fp16": 121.0, "fp32": 30.3},
    "L40S": {"bf16": 362.0, "fp16": 362.0, "fp32": 91.6},
    "H100": {"bf16": 989.0, "fp16": 989.0, "fp32": 67.0},
    "H200": {"bf16": 989.0, "fp16": 989.0, "fp32": 67.0},
}
"""Dense peaks of the makers' data sheets (SXM where there are several), in 10**12 FLOP/s."""

_SIZE = 1024
_SECONDS = 0.3
"""At most so long, and three products at least."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a model's FLOP/s are held against."""

    flops_per_s: float
    """Of one rank's device, or of one rank's threads."""
    source: str
    """Where the figure comes from, for people."""


def peak_of(device: torch.device, precision: str, given_tflops: float | None) -> Peak | None:
    """The figure that the config gives, else the stated one of a GPU, else one measured on a CPU.

    None: an accelerator that is not in the table.
    """
    if given_tflops is not None:
        return Peak(flops_per_s=given_tflops * 1e12, source="metrics.peak_tflops")
    if device.type == "cpu":
        return Peak(
            flops_per_s=measured_gemm(),
            source=f"fp32 product of {_SIZE} x {_SIZE} on {torch.get_num_threads()} thread(s), "
            "measured when the run started",
        )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    stated = stated_tflops(name, precision)
    if stated is None:
        return None
    return Peak(flops_per_s=stated * 1e12, source=f"stated by the maker of {name} ({precision})")


def stated_tflops(device_name: str, precision: str) -> float | None:
    """The table's entry whose name is a word of `device_name`; None where there is none."""
    words = device_name.replace("-", " ").split()
    for name, by_precision in STATED_TFLOPS.items():
        if name in words:
            return by_precision.get(precision)
    return None


def measured_gemm() -> float:
    """FLOP/s of the fastest of some fp32 matrix products on this rank's threads."""
    left, right = torch.ones(_SIZE, _SIZE), torch.ones(_SIZE, _SIZE)
    out = torch.empty(_SIZE, _SIZE)
    times: list[float] = []
    while len(times) < 3 or sum(times) < _SECONDS:
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        times.append(time.perf_counter() - started)
    return 2 * _SIZE**3 / min(times)
