"""Every objective and way of sharing: DeepSpeed against the reference, in one process group."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.ranks import ROOT, run_ranks

pytestmark = pytest.mark.distributed

SMALL_SHARDS = {
    "zero_stage": 3,
    "deepspeed_config": str(ROOT / "deepspeed_configs" / "zero3_small_shards.json"),
}
"""No parameter stays whole between its uses: what reads another module's must have it gathered."""
CASES: list[tuple[str, dict[str, object]]] = [
    ("electric", {"zero_stage": 1}),
    ("electric, untied tables", SMALL_SHARDS),
    ("electric, disentangled", SMALL_SHARDS),
    ("uniform generator", {"zero_stage": 2}),
    ("untied tables", SMALL_SHARDS),
    ("one transformer", {"zero_stage": 2}),
    ("one transformer", {"zero_stage": 3}),
    ("one transformer, sampling without dropout", SMALL_SHARDS),
    ("disentangled", {"zero_stage": 0}),
    ("disentangled", SMALL_SHARDS),
    ("sampling without dropout", SMALL_SHARDS),
    ("modern", {"zero_stage": 2}),
    ("modern, untied tables", SMALL_SHARDS),
]
BF16_CASES: list[tuple[str, dict[str, object]]] = [
    ("electric, disentangled", {**SMALL_SHARDS, "precision": "bf16"}),
    ("one transformer", {"zero_stage": 2, "precision": "bf16"}),
    ("modern", {**SMALL_SHARDS, "precision": "bf16"}),
]
"""Of which a CPU makes products a hundred times slower."""


@pytest.mark.parametrize("cases", [CASES, pytest.param(BF16_CASES, marks=pytest.mark.slow)])
def test_every_variant_trains_as_plain_pytorch_does(
    cases: list[tuple[str, dict[str, object]]], tmp_path: Path
) -> None:
    reports = run_ranks(
        "tests.distributed.objectives_workers:parity_of_variants",
        2,
        tmp_path,
        cases=cases,
        num_steps=2,
    )[0]
    for case, report in zip(cases, reports, strict=True):
        print(case, report)
        is_fp32 = "precision" not in case[1]
        assert report["loss"] < (1e-5 if is_fp32 else 1e-2), case
        assert not is_fp32 or report["weight"] < 1e-4, case
