"""What a run makes of its devices: MFU, and memory by kind. All of it depends on the machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from electra_dist.config.flops import flops_of_row
from electra_dist.config.schema import RunConfig
from electra_dist.engine.protocol import Fragment
from electra_dist.runtime.peak import Peak


class Efficiency:
    """Of rank 0, whose share of the work and of the state is as large as any.

    Args:
        config: the run's, with its vocabulary size.
        world_size: ranks.
        device: where this rank computes.
        peak: what MFU is held against; None: unknown, and there is no MFU.
        fragments: the training state that this rank holds.
        save_buffer_bytes: host memory that saves are copied into.
    """

    def __init__(
        self,
        config: RunConfig,
        world_size: int,
        device: torch.device,
        peak: Peak | None,
        fragments: Iterable[Fragment],
        save_buffer_bytes: int,
    ) -> None:
        self.peak = peak
        self._world_size, self._device = world_size, device
        # A token's share of a full row: what padding would have cost is no work of the model.
        self._flops_of_token = flops_of_row(config) / config.data.sequence_length
        state = {"master": 0, "moments": 0}
        for fragment in fragments:
            kind = "master" if fragment.kind == "master" else "moments"
            state[kind] += fragment.values.numel() * fragment.values.element_size()
        self._memory = {
            "memory_master_bytes": float(state["master"]),
            "memory_moments_bytes": float(state["moments"]),
            "memory_save_buffers_bytes": float(save_buffer_bytes),
        }

    def metrics(self, *, tokens: float, step_seconds: float) -> dict[str, float]:
        """For `timing` of metrics.jsonl.

        Args:
            tokens: real tokens of the step, over all ranks.
            step_seconds: from one step's beginning to its end.
        """
        flops_per_s = tokens * self._flops_of_token / step_seconds
        values = {"model_tflops_per_s": flops_per_s / 1e12}
        if self.peak is not None:
            values["mfu"] = flops_per_s / (self._world_size * self.peak.flops_per_s)
        return {**values, **self._memory, "memory_peak_bytes": float(peak_bytes(self._device))}


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held: on its GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
