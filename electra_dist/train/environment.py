"""RUN/environment.json: what a run ran on; no environment variables, which may hold secrets."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from electra_dist.config.schema import RunConfig
from electra_dist.runtime.world import World


def environment(world: World, device: torch.device) -> dict[str, Any]:
    """Versions, commit, host and device, as rank 0 sees them."""
    packages = ("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy")
    return {
        "electra_dist": metadata.version("electra_dist"),
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in packages},
        "git_commit": _git_commit(),
        "leader_host": socket.gethostname(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name()
        if device.type == "cuda"
        else platform.machine(),
        "world_size": world.world_size,
        "launcher": world.launcher,
    }


def _git_commit() -> str | None:
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def engine_words(config: RunConfig) -> str:
    """`DeepSpeed ZeRO-2 fp32`, or `reference fp32`."""
    name = (
        f"DeepSpeed ZeRO-{config.engine.zero_stage}"
        if config.engine.kind == "deepspeed"
        else "reference"
    )
    return f"{name} {config.engine.precision}"
