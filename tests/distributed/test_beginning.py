"""Runs that begin with the state of another: --init-from and --resume-from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from electra_dist.checkpoint.layout import KINDS, list_checkpoints
from electra_dist.checkpoint.reshard import CheckpointReader, differences
from electra_dist.data.frozen import freeze
from electra_dist.data.packing import pack
from electra_dist.data.store import Corpus, Packing
from electra_dist.runtime.files import read_json_lines
from electra_dist.train.audit import audit
from tests import made_up
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs of `begun_from_another`; the source is called `gone` by now."""
    folder = tmp_path_factory.mktemp("begun")
    corpus = made_up.corpus(folder / "made_up", length=32)
    opened = Corpus.open(corpus)
    pack(corpus, 64)
    freeze(opened, Packing.open(Corpus.open(corpus), 64))
    run_ranks(
        "tests.distributed.resume_workers:begun_from_another",
        2,
        folder / "logs",
        corpus=str(corpus),
        folder=str(folder),
        longer=str(corpus),
    )
    return folder


def checkpoint(run: Path, step: int) -> Path:
    return run / f"checkpoints/step_{step:08d}"


def unequal(one: Path, other: Path) -> set[str]:
    """Kinds in which two checkpoints differ."""
    with CheckpointReader(one) as a, CheckpointReader(other) as b:
        return {
            kind
            for kind in KINDS
            for name in a.manifest.parameters
            if not np.array_equal(a.read_whole(name, kind), b.read_whole(name, kind))
        }


def metrics(run: Path) -> list[dict[str, Any]]:
    """Without the clock's part, and without evaluations at the last step of a life."""
    lines = read_json_lines(run / "metrics.jsonl")
    for line in lines:
        del line["timing"]
        if line["step"] % 10:
            line.pop("eval", None)
    return lines


def events(run: Path, *names: str) -> Iterator[dict[str, Any]]:
    return (e for e in read_json_lines(run / "events.jsonl") if e["event"] in names)


@pytest.mark.parametrize("name", ["calm", "longer", "zero_2", "zero_3"])
def test_a_run_begins_with_the_weights_and_fresh_moments_at_step_0(name: str, runs: Path) -> None:
    first = checkpoint(runs / name, 0)
    assert unequal(first, checkpoint(runs / "gone", 15)) == {"exp_avg", "exp_avg_sq"}
    with CheckpointReader(first) as reader:
        assert not any(
            reader.read_whole(p, kind).any()
            for p in reader.manifest.parameters
            for kind in KINDS[1:]
        )
        assert (reader.state["step"], reader.state["position"]) == (0, 0)
    (init,) = events(runs / name, "init")
    source = runs / ("gone" if name.startswith("zero") else "source")
    assert init["source"] == str(source)
    assert init["checkpoint"] == str(checkpoint(source, 15))
    assert (init["source_step"], init["keep_moments"]) == (15, False)
    assert metrics(runs / name)[0]["lr"] == 0.0  # the rate rises anew
    assert audit(runs / name, []).problems == []


def test_with_keep_moments_they_come_too(runs: Path) -> None:
    assert differences(checkpoint(runs / "gone", 15), checkpoint(runs / "kept", 0)) == [
        "step: 15 and 0"
    ]
    # And how many updates they are made of, on which a corrected bias counts.
    counts = [
        CheckpointReader(checkpoint(runs / name, step)).state["num_updates"]
        for name, step in (("gone", 15), ("kept", 0), ("kept", 1), ("calm", 0))
    ]
    assert counts == [15, 15, 16, 0]


def test_a_resume_needs_no_source_and_does_not_begin_again(runs: Path) -> None:
    calm, broken = runs / "calm", runs / "broken"
    assert [info.step for info in list_checkpoints(broken)][-1] == 10
    assert differences(checkpoint(calm, 10), checkpoint(broken, 10)) == []
    assert metrics(calm) == metrics(broken)
    assert [e["event"] for e in events(broken, "init", "start", "resume")] == [
        *("init", "start", "resume", "resume")
    ]
    assert audit(broken, []).problems == []


def test_a_fork_goes_on_as_the_run_itself_would_have(runs: Path) -> None:
    fork, whole = runs / "fork", runs / "whole"
    for step in (15, 30):
        assert differences(checkpoint(fork, step), checkpoint(whole, step)) == []
    assert metrics(fork) == metrics(whole)
    (event,) = events(fork, "fork")
    assert (event["step"], event["source_step"]) == (15, 15)
    found = audit(fork, [])
    assert found.problems == []
    assert found.history is not None
    assert found.history.position == 30 * 8


def test_a_fork_may_have_another_rate_and_schedule(runs: Path) -> None:
    slower = runs / "slower"
    assert unequal(checkpoint(slower, 20), checkpoint(runs / "whole", 15))
    assert next(line["lr"] for line in metrics(slower) if line["step"] > 15) < 1e-5
    (event,) = events(slower, "fork")
    assert any("optim.learning_rate" in words for words in event["changed"])
    assert audit(slower, []).problems == []
    assert json.loads((slower / "config.json").read_text())["schedule"]["num_steps"] == 50
