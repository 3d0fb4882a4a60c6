"""Steps that must not change weights, and runs over poisoned rows, on real ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import ROOT, run_ranks

pytestmark = pytest.mark.distributed
WORKERS = "tests.distributed.health_workers"
CONFIGS = ROOT / "deepspeed_configs"
VARIANTS: list[dict[str, Any]] = [
    {"kind": "reference"},
    *({"zero_stage": stage} for stage in range(4)),
    {"zero_stage": 2, "precision": "bf16"},
    {"zero_stage": 3, "deepspeed_config": str(CONFIGS / "zero3_small_shards.json")},
    {"zero_stage": 2, "deepspeed_config": str(CONFIGS / "zero2_offload.json")},
]


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_update_that_is_refused_leaves_every_bit_as_it_was(
    world_size: int, tmp_path: Path
) -> None:
    """Refused by the ranks' answer, and by a NaN that DeepSpeed itself may see first."""
    results = run_ranks(f"{WORKERS}:vetoed_steps", world_size, tmp_path, variants=VARIANTS)
    for number, variant in enumerate(VARIANTS):
        for step in range(2):
            found = [of_rank[number][step] for of_rank in results]
            for report in found:
                assert report["untouched"], (variant, step)
                assert report["moved"], (variant, step)
                assert report["times_asked"] == 2, (variant, step)
                assert report["replays_equal"], (variant, step)
                assert report["sick_norm"] == "nan", (variant, step)
            sick = [i for report in found for i in report["sick_micro_batches"]]
            assert sick == [3], (variant, step)
