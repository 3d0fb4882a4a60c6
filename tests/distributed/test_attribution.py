"""A delay of 100 ms on one of four ranks: the rank is named, and the phase."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed
PHASES = ("data", "forward", "backward", "save")


@pytest.mark.parametrize("num_trials", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_delay_is_attributed_to_its_rank_and_phase(num_trials: int, tmp_path: Path) -> None:
    """All trials in one launch; the delay sits on a rank and in a phase drawn anew each time."""
    draw = random.Random(num_trials)
    truth = [[draw.randrange(4), draw.choice(PHASES)] for _ in range(num_trials)]
    # Step 1 is an attempt's first, which is not compared.
    faults = ";".join(
        f"slow rank={rank} step={step} phase={phase} seconds=0.1"
        for step, (rank, phase) in enumerate(truth, start=2)
    )
    told = run_ranks(
        "tests.distributed.watch_workers:sleeping_steps",
        4,
        tmp_path,
        faults=faults,
        num_steps=num_trials + 1,
    )
    assert all(one == told[0] for one in told), "the ranks disagree"
    assert told[0][0] is None
    num_right = sum(named == true for named, true in zip(told[0][1:], truth, strict=True))
    print(f"rank and phase named right in {num_right} of {num_trials} trials")
    assert num_right >= 0.99 * num_trials


ENGINES = [{"kind": "reference"}, *({"zero_stage": stage} for stage in range(4))]


@pytest.mark.parametrize(
    "engines", [ENGINES[:1], pytest.param(ENGINES[1:], marks=pytest.mark.slow)]
)
def test_an_engine_tells_its_own_time_from_that_in_its_collectives(
    engines: list[dict[str, object]], tmp_path: Path
) -> None:
    """Rank 0 waits for rank 1 within DeepSpeed's forward (stage 3) or backward, and is not late."""
    for told in run_ranks(
        "tests.distributed.watch_workers:late_in_real_engines", 2, tmp_path, variants=engines
    ):
        assert told == [[[1, "forward"]]] * len(engines)
