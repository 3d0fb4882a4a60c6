"""Bytes that a step sends: what DeepSpeed really asks of torch.distributed, against the plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from electra_dist.config.traffic import traffic_of_step
from tests.distributed.ranks import ROOT, run_ranks
from tests.distributed.synthetic import tiny_config

pytestmark = pytest.mark.distributed


def variants(folder: Path) -> list[dict[str, Any]]:
    """Every stage, both settings of the buckets, nothing persistent, and bf16."""
    files = {
        "reduce_1": {"stage": 1, "use_multi_rank_bucket_allreduce": False},
        "reduce_2": {"stage": 2, "use_multi_rank_bucket_allreduce": False},
        "nothing_stays": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    for name, zero in files.items():
        (folder / f"{name}.json").write_text(json.dumps({"zero_optimization": zero}))
    small_shards = str(ROOT / "deepspeed_configs" / "zero3_small_shards.json")
    return [
        *({"zero_stage": stage} for stage in range(4)),
        {"zero_stage": 1, "deepspeed_config": str(folder / "reduce_1.json")},
        {"zero_stage": 2, "deepspeed_config": str(folder / "reduce_2.json")},
        {"zero_stage": 3, "deepspeed_config": str(folder / "nothing_stays.json")},
        {"zero_stage": 3, "deepspeed_config": small_shards},
        {"zero_stage": 2, "precision": "bf16"},
    ]


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_step_sends_what_the_plan_says(world_size: int, tmp_path: Path) -> None:
    """M = 8 micro-batches: 4 passes on 2 ranks, 3 on 3, one of them a repeat."""
    cases = variants(tmp_path)
    reports = run_ranks(
        "tests.distributed.traffic_workers:count_traffic",
        world_size,
        tmp_path / "ranks",
        variants=cases,
    )
    for number, variant in enumerate(cases):
        config = tiny_config(**variant)
        predicted = traffic_of_step(config, world_size=world_size)
        sent = [sum(calls[2] for calls in rank[number].values()) for rank in reports]
        mean = sum(sent) / world_size
        print(world_size, variant, f"{mean:.0f} sent, {predicted.total} predicted")
        assert mean == pytest.approx(predicted.total, rel=0.01), variant


def test_the_reference_engine_sends_its_gradients_once(tmp_path: Path) -> None:
    config = replace(tiny_config(), engine=replace(tiny_config().engine, kind="reference"))
    sent = run_ranks("tests.distributed.traffic_workers:count_reference", 2, tmp_path / "ranks")
    assert sent[0] == pytest.approx(traffic_of_step(config, world_size=2).total, rel=1e-4)
