"""Random bit flips over a whole checkpoint: each is found before a value reaches the engine."""

import mmap
import random
from collections import Counter
from pathlib import Path

import pytest

from electra_dist.errors import UserError
from electra_dist.runtime.attempt import Attempt
from tests.unit.checkpoint.fake_engine import DictEngine, a_store

SHAPES: dict[str, tuple[int, ...]] = {"tower.weight": (600, 300), "tower.bias": (300,)}
"""Two shards of 1.03 MiB: a whole block each, and a part of one."""


@pytest.mark.parametrize("num_flips", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_flip_is_found_before_a_value_reaches_the_engine(run: Path, num_flips: int) -> None:
    attempt = Attempt.claim(run)
    stores = [a_store(attempt, rank=rank, ranks=2) for rank in (0, 1)]
    for rank in (1, 0):
        stores[rank].save(DictEngine(1, SHAPES, rank, 2), 10, {"step": 10, "position": 320})
        assert stores[rank].wait()
        stores[rank].close()
    files = sorted((run / "checkpoints/step_00000010").iterdir())
    assert [f.name for f in files][:2] == ["manifest.json", "shard_00000.safetensors"]
    engine = DictEngine(-1, SHAPES)
    draw = random.Random(0)
    found: Counter[str] = Counter()
    for number in range(num_flips):
        # Every other flip in a file drawn evenly: else the small ones would never be hit.
        weights = None if number % 2 else [f.stat().st_size for f in files]
        (path,) = draw.choices(files, weights)
        with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as data:
            place, bit = draw.randrange(len(data)), 1 << draw.randrange(8)
            data[place] ^= bit
            with pytest.raises(UserError, match="no checkpoint verifies"):
                stores[0].restore(engine, SHAPES)
            data[place] ^= bit
        found[path.name] += 1
    assert len(found) == 4
    assert engine.num_restored == 0
    assert engine.equals(-1)
    assert stores[0].restore(engine, SHAPES) == {"step": 10, "position": 320}
    assert engine.equals(1)
    print(f"{found.total()} flips, all found: {dict(found)}")
