"""AdamW and LAMB on every engine, and half precision, on real ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import ROOT, run_ranks

pytestmark = pytest.mark.distributed
WORKERS = "tests.distributed.optim_workers"
CONFIGS = ROOT / "deepspeed_configs"
ENGINES: list[dict[str, Any]] = [
    {"kind": "reference"},
    *({"zero_stage": stage} for stage in range(4)),
    {"zero_stage": 3, "deepspeed_config": str(CONFIGS / "zero3_small_shards.json")},
    {"zero_stage": 2, "deepspeed_config": str(CONFIGS / "zero2_offload.json")},
]


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_sharded_updates_are_those_of_whole_parameters(world_size: int, tmp_path: Path) -> None:
    """Trust ratios too: 3 steps at every stage, off-loaded, and with parameters cut small."""
    reports = run_ranks(
        f"{WORKERS}:against_whole",
        world_size,
        tmp_path,
        optimizers=["lamb", "adamw"],
        variants=ENGINES,
    )[0]
    for report in reports:
        print(report)
    for report in reports:
        assert report["from_whole"] < 1e-6, report
        assert report["tower_norms"] < 1e-5, report
        # Other engines, other rounding of gradients: it shows where these are next to nothing.
        assert report["from_first"] < 1e-2, report


def test_half_precision_skips_what_overflows_and_trains_on_what_does_not(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {"kind": "reference"},
        *({"kind": "reference", "precision": precision} for precision in ("bf16", "fp16")),
        *({"zero_stage": stage, "precision": "fp16"} for stage in (1, 2, 3)),
        {"zero_stage": 2, "precision": "bf16"},
    ]
    if not torch.ops.mkldnn._is_mkldnn_fp16_supported():  # DeepSpeed refuses fp16 then
        variants = [v for v in variants if v.get("precision") != "fp16" or "kind" in v]
    reports = run_ranks(f"{WORKERS}:half_precision", 2, tmp_path, variants=variants)[0]
    exact, *others = reports
    for variant, report in zip(variants, reports, strict=True):
        print(variant, report)
    for variant, report in zip(variants[1:], others, strict=True):
        dtype = {"fp16": "torch.float16", "bf16": "torch.bfloat16"}[variant["precision"]]
        assert report["computes_in"] == [dtype], variant
        assert report["poisoned_norm"] == "nan", variant
        assert report["norms"] == pytest.approx(
            [exact["norms"][0]] * len(report["norms"]), rel=0.05
        )
        assert report["losses"] == pytest.approx(exact["losses"], rel=0.05), variant
        assert report["moved"] == pytest.approx(exact["moved"], rel=0.2), variant
        if variant["precision"] == "fp16":
            assert report["untouched"], variant
            assert report["overflow_norm"] == "nan", variant
        else:
            assert math.isfinite(float(report["overflow_norm"])), variant
