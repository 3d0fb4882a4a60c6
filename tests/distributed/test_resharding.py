"""Every ZeRO stage at every world size reads what every other has written, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import zero_layouts
from tests.distributed import resharding_workers
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed
WORKERS = "tests.distributed.resharding_workers"


@pytest.mark.parametrize(
    "world_sizes", [[3], pytest.param([1, 2, 3, 4], marks=pytest.mark.slow)], ids=str
)
def test_every_stage_and_world_size_to_every_other(world_sizes: list[int], tmp_path: Path) -> None:
    """Real engines in worlds of the same processes, each reading all 16 layouts.

    The layouts read are made by arithmetic (`zero_layouts`). That the real engines write the same
    files, byte for byte, closes the circle: 16 x 16 pairs with all four worlds.
    """
    sources = resharding_workers.write_sources(tmp_path / "sources")
    counts = run_ranks(
        f"{WORKERS}:every_shape",
        max(world_sizes),
        tmp_path / "logs",
        folder=str(tmp_path / "saved"),
        sources=str(tmp_path / "sources"),
        world_sizes=world_sizes,
    )
    # Rank 0 is in every world: 4 stages and 16 checkpoints in each.
    assert counts[0] == 64 * len(world_sizes)
    last = zero_layouts.some_state(
        resharding_workers.SHAPES, resharding_workers.SEED + len(sources) - 1
    )
    for stage in zero_layouts.STAGES:
        for world_size in world_sizes:
            made = zero_layouts.write(
                tmp_path / f"made_{stage}_{world_size}",
                last,
                resharding_workers.SHAPES,
                stage,
                world_size,
            )
            (real,) = (tmp_path / f"saved/{stage}_{world_size}/checkpoints").iterdir()
            shards = sorted(made.glob("shard_*"))
            assert len(shards) == world_size
            for shard in shards:
                assert shard.read_bytes() == (real / shard.name).read_bytes(), (stage, shard.name)
