"""The DeepSpeed config of a run: what our config owns, plus the user's ZeRO and communication keys.

No torch here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from electra_dist.config.accounting import padded_shapes
from electra_dist.config.schema import RunConfig
from electra_dist.config.zero import ZeroSettings
from electra_dist.errors import UserError

ALLOWED_KEYS = (
    "zero_optimization",
    "aio",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "comms_logger",
    "flops_profiler",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
)


def deepspeed_config(config: RunConfig, num_passes: int) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`.

    Batch and precision come from our config; `engine.deepspeed_config` may add ZeRO and
    communication keys.

    Args:
        config: the run's config.
        num_passes: passes of a rank in one step (gradient accumulation steps, the same on every
            rank).

    Raises:
        UserError: the file is missing, not JSON, sets a key that this config owns, or names another
            ZeRO stage.
    """
    check_deepspeed_config(config)
    path = config.engine.deepspeed_config
    extra = _read(path) if path else {}
    num_elements = sum(map(math.prod, padded_shapes(config).values()))
    zero = {
        **extra.pop("zero_optimization", {}),
        "stage": config.engine.zero_stage,
        "reduce_bucket_size": ZeroSettings.read(path).bucket_elements(num_elements),
    }
    return {
        **extra,
        "train_micro_batch_size_per_gpu": config.batch.micro_batch_size,
        "gradient_accumulation_steps": num_passes,
        # The optimizer clips, in the pass it makes anyway (`MomentOptimizer.gradient_divisor`).
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "bf16": {"enabled": config.engine.precision == "bf16"},
        # A scale that DeepSpeed leaves alone (0 would be its own dynamic one): each step sets ours.
        "fp16": {
            "enabled": config.engine.precision == "fp16",
            "loss_scale": config.engine.initial_loss_scale,
        },
        # Our optimizer is plain element-wise torch: every ZeRO stage can shard it, off-loaded too.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def check_deepspeed_config(config: RunConfig) -> None:
    """Raise the errors of `deepspeed_config` early, and the one of a stage that differs."""
    path = config.engine.deepspeed_config
    if path is None:
        return
    stage = _read(path).get("zero_optimization", {}).get("stage", config.engine.zero_stage)
    if stage != config.engine.zero_stage:
        raise UserError(
            f"{path} says zero_optimization.stage = {stage}, but engine.zero_stage = "
            f"{config.engine.zero_stage}; set engine.zero_stage = {stage}, or take another file"
        )
    ZeroSettings.read(path)


def _read(path: str) -> dict[str, Any]:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"engine.deepspeed_config = {path!r} does not exist; give a path to a JSON file"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"engine.deepspeed_config = {path!r} is not readable JSON: {error}"
        ) from None
    if not isinstance(values, dict) or not isinstance(values.get("zero_optimization", {}), dict):
        raise UserError(
            f"{path} must hold a JSON object whose zero_optimization is an object; "
            "see deepspeed_configs/"
        )
    for key in values:
        if key not in ALLOWED_KEYS:
            raise UserError(
                f"{path}: key {key!r} is not taken from a DeepSpeed file, because the run's own "
                f"config sets it; remove it (allowed are {', '.join(ALLOWED_KEYS)})"
            )
    zero = values.get("zero_optimization", {})
    if zero.get("compute_grad_norm", True) is not True:
        raise UserError(
            f"{path}: zero_optimization.compute_grad_norm = {zero['compute_grad_norm']!r} leaves "
            "the clip and the guard against broken steps without a norm; remove it"
        )
    _refuse_unreachable_state(path, zero)
    return values


def uses_nvme(config: RunConfig) -> bool:
    """Whether the file keeps the weights that the model computes with on a disk of the node."""
    path = config.engine.deepspeed_config
    zero = _read(path).get("zero_optimization", {}) if path else {}
    return _device(zero.get("offload_param")) == "nvme"


def _refuse_unreachable_state(path: str, zero: dict[str, Any]) -> None:
    """Settings that keep or cut the state in ways that our checkpoints cannot read.

    Weights on NVMe (`offload_param`) are copies: what is saved is made of the optimizer's masters.
    """
    for key, value in zero.items():
        is_on_disk = key != "offload_param" and _device(value) == "nvme"
        if is_on_disk or key.startswith(("mics_", "zero_hpz_")):
            raise UserError(
                f"{path}: zero_optimization.{key} = {value!r} puts state where checkpoints do not "
                'reach it; remove it, or off-load with "device": "cpu" (only offload_param may go '
                "to nvme)"
            )
    on_disk = _device(zero.get("offload_param")) == "nvme"
    if on_disk and _device(zero.get("offload_optimizer")) != "cpu":
        raise UserError(
            f'{path}: offload_param on "nvme" needs zero_optimization.offload_optimizer = '
            '{"device": "cpu"}, where checkpoints reach the masters; add it'
        )


def _device(value: Any) -> str | None:
    """Where an `offload_...` section puts things, in the words of the file."""
    device = value.get("device") if isinstance(value, dict) else None
    return device if isinstance(device, str) else None
