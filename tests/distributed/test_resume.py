"""A run that was stopped, resumed, resharded: the same micro-batches, and the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from electra_dist.checkpoint.layout import list_checkpoints
from electra_dist.checkpoint.reshard import differences
from electra_dist.train.audit import audit
from tests import made_up
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed
WORKERS = "tests.distributed.resume_workers"
ENGINES: list[dict[str, Any]] = [
    {"kind": "reference"},
    *({"zero_stage": stage} for stage in range(4)),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made_up.corpus(tmp_path_factory.mktemp("corpus"), length=32))


def metrics_without_timing(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["timing"]
    return lines


def trained_on(run: Path) -> dict[int, tuple[int, str]]:
    """Step -> (first position, checksum of the tensors that the engines were given)."""
    records = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return {r["step"]: (r["position"], r["checksum"]) for r in records if r["kind"] == "step"}


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_stopped_by_a_signal_ends_with_the_bits_of_a_calm_one(
    world_size: int, corpus: str, tmp_path: Path
) -> None:
    """Every engine and stage; dropout, sampling and accumulation on."""
    reasons = run_ranks(
        f"{WORKERS}:calm_and_stopped",
        world_size,
        tmp_path / "logs",
        corpus=corpus,
        folder=str(tmp_path),
        engines=ENGINES,
    )
    for number, engine in enumerate(ENGINES):
        assert reasons[0][number] == ["finished", "stopped", "finished"], engine
        calm, broken = tmp_path / f"calm_{number}", tmp_path / f"broken_{number}"
        assert [c.step for c in list_checkpoints(broken)][-2:] == [18, 24]
        last = [list_checkpoints(run)[-1].folder for run in (calm, broken)]
        assert differences(*last) == [], engine
        assert metrics_without_timing(broken) == metrics_without_timing(calm), engine
        assert trained_on(broken) == trained_on(calm), engine
        assert audit(broken, []).problems == [], engine


def test_other_ranks_and_stages_train_on_the_same_micro_batches(
    corpus: str, tmp_path: Path
) -> None:
    """2 ranks ZeRO-2 -> 1 rank ZeRO-0 -> 3 ranks ZeRO-3 -> 2 ranks ZeRO-1 beside a calm run."""
    lives = [(2, 2, 5), (1, 0, 10), (3, 3, 15), (2, 1, 20)]
    for world_size, stage, stop_step in lives:
        run_ranks(
            f"{WORKERS}:one_life",
            world_size,
            tmp_path / "logs",
            corpus=corpus,
            folder=str(tmp_path / "changing"),
            engine={"zero_stage": stage},
            stop_step=stop_step,
        )
    run_ranks(
        f"{WORKERS}:one_life",
        1,
        tmp_path / "logs",
        corpus=corpus,
        folder=str(tmp_path / "calm"),
        engine={"kind": "reference"},
        stop_step=20,
    )
    assert trained_on(tmp_path / "changing") == trained_on(tmp_path / "calm")
    events = [json.loads(x) for x in (tmp_path / "changing/events.jsonl").read_text().splitlines()]
    assert [e["world_size"] for e in events if e["event"] in ("start", "resume")] == [2, 1, 3, 2]
    changing = [line["loss"] for line in metrics_without_timing(tmp_path / "changing")]
    calm = [line["loss"] for line in metrics_without_timing(tmp_path / "calm")]
    assert changing == pytest.approx(calm, rel=5e-3)  # summation order, and a sample that flips
    assert audit(tmp_path / "changing", []).problems == []


def test_a_blend_in_lanes_with_skips_passes_its_audit_through_a_resize(
    corpus: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.symlink_to(corpus)
    more = ["--data.blend", corpus, "2", str(other), "1"]
    more += ["--data.num_lanes", "2", "--data.skips", "10", "14"]
    for world_size, stop_step in ((3, 4), (1, 7)):
        run_ranks(
            f"{WORKERS}:one_life",
            world_size,
            tmp_path / "logs",
            corpus="",
            folder=str(tmp_path / "run"),
            engine={"kind": "reference"},
            stop_step=stop_step,
            more=more,
        )
    found = audit(tmp_path / "run", [])
    assert found.problems == []
    assert found.history is not None
    assert (found.history.position, found.history.skips) == (56, ((10, 14),))
