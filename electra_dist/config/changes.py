"""What differs between two configs, and what of it a resume or a fork may change."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from electra_dist.config.schema import RunConfig

# What a resumed run may change; everything else decides which numbers are computed.
RESUMABLE_FIELDS = (
    "recipe",
    "model.pad_vocab_to_multiple_of",  # rows of zeros that no checkpoint holds
    "data.corpus",
    "data.blend",  # folders may move; their content and weights are in the corpus fingerprint
    "data.prefetch_steps",
    "data.cache_dir",
    "data.cache_bytes",
    "schedule.stop_step",
    *(
        f"engine.{name}"  # all but compile, after which numbers are rounded otherwise
        for name in (
            *("kind", "zero_stage", "deepspeed_config", "precision", "initial_loss_scale"),
            *("loss_scale_window", "threads_per_rank", "timeout_seconds", "deterministic"),
            "activation_checkpointing",
        )
    ),
    "checkpoint",
    "resilience",
    "metrics",
)


# What a fork (--resume-from) may change beyond that: the rows, their order and the shapes stay.
FORKABLE_FIELDS = (
    "optim",
    "schedule",
    "objective.gen_weight",
    "objective.disc_weight",
    "objective.temperature",
    "objective.temperature_end",
    "objective.temperature_anneal_steps",
    "objective.disallow_correct",
    "objective.sampling_dropout",
    "model.hidden_dropout",
    "model.attention_dropout",
)


def fingerprint(config: RunConfig) -> str:
    """Hash of the fields that decide which numbers a run computes.

    What a resume may change is left out, and so is what has its default: a knob that a later
    version adds does not change the fingerprint of older runs.
    """
    defaults = flatten(RunConfig())
    flat = {
        name: value
        for name, value in flatten(config).items()
        if not _is_resumable(name) and value != defaults[name]
    }
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]


def flatten(config: RunConfig) -> dict[str, Any]:
    """All fields as ``{"batch.micro_batch_size": 32, ...}``."""
    flat: dict[str, Any] = {}
    for name, value in asdict(config).items():
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            flat[name] = value
    return flat


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """What differs, in words: one ``batch.micro_batch_size: 32 -> 16`` a field."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before[name]!r} -> {after[name]!r}"
        for name in before
        if before[name] != after[name]
    ]


def forbidden_differences(old: RunConfig, new: RunConfig) -> list[str]:
    """The differences that a resume must refuse."""
    return [words for words in differences(old, new) if not _is_resumable(words.split(":")[0])]


def unforkable_differences(old: RunConfig, new: RunConfig) -> list[str]:
    """The differences that a fork must refuse."""
    return [
        words
        for words in forbidden_differences(old, new)
        if not {(name := words.split(":")[0]), name.split(".")[0]} & {*FORKABLE_FIELDS}
    ]


def _is_resumable(name: str) -> bool:
    return name in RESUMABLE_FIELDS or name.split(".")[0] in RESUMABLE_FIELDS
