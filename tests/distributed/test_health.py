"""Steps that must not change weights, and runs over poisoned rows, on real ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from electra_dist.checkpoint.layout import list_checkpoints, read_manifest, read_state
from electra_dist.checkpoint.reshard import differences
from electra_dist.runtime.files import read_json_lines
from electra_dist.train.audit import audit
from tests import made_up
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


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2])
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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made_up.corpus(tmp_path_factory.mktemp("corpus"), length=32))


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    return [e for e in read_json_lines(run / "events.jsonl") if e["event"] in kinds]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name != "timing"}
        for line in read_json_lines(run / "metrics.jsonl")
    ]


def last(run: Path) -> Path:
    return list_checkpoints(run)[-1].folder


# 8 samples a step, 2 a micro-batch. Positions 11 and 166 are poisoned before the first checkpoint
# (step 15) and in the 21st step, 167 beside 166, and 201 in what the 25th step is by then.
POISONED = "nan position=11; nan position=166; nan position=201"


def poisoned_and_born(name: str, engine: dict[str, Any]) -> list[dict[str, Any]]:
    """A run that meets the poison, stopped and resumed once, and one that was told of it."""
    skips = ["--data.skips", "10", "12", "166", "168", "200", "202"]
    return [
        {"name": f"{name}_poisoned", "engine": engine, "faults": POISONED, "stop_at": 22},
        {"name": f"{name}_poisoned", "engine": engine, "faults": POISONED},
        {"name": f"{name}_born", "engine": engine, "more": skips},
    ]


def test_poisoned_batches_are_found_rolled_back_over_and_skipped(
    corpus: str, tmp_path: Path
) -> None:
    """Final weights are those of a run born with these positions in its skip list."""
    engines = {"reference": {"kind": "reference"}, "zero2": {"zero_stage": 2}}
    runs = [one for pair in engines.items() for one in poisoned_and_born(*pair)]
    reasons = run_ranks(
        f"{WORKERS}:lives", 2, tmp_path / "logs", corpus=corpus, folder=str(tmp_path), runs=runs
    )
    assert reasons[0] == ["stopped", "finished", "finished"] * len(engines)
    for name in engines:
        poisoned, born = tmp_path / f"{name}_poisoned", tmp_path / f"{name}_born"
        assert differences(last(poisoned), last(born)) == []
        found = events(poisoned, "anomaly")
        assert [e["positions"] for e in found] == [[[10, 12]], [[166, 168]], [[200, 202]]]
        assert {(e["blame"], e["response"], e["quantity"]) for e in found} == {
            ("data", "rollback", "loss")
        }
        assert [e["step"] for e in events(poisoned, "rollback")] == [0, 15, 23]
        # The rows after the poison move up: metrics and ledger tell the same story, once a step.
        assert metrics(poisoned) == metrics(born)
        assert [line["step"] for line in metrics(poisoned)] == list(range(1, 41))
        report = audit(poisoned, [])
        assert report.problems == []
        assert report.history is not None
        assert report.history.skips == ((10, 12), (166, 168), (200, 202))
        state = read_state(last(poisoned), read_manifest(last(poisoned)))
        assert state["num_rollbacks"] == 3


@pytest.mark.slow
def test_the_other_answers_to_an_anomaly(corpus: str, tmp_path: Path) -> None:
    reference = {"kind": "reference"}
    window = ["--resilience.spike_window_steps", "8", "--resilience.spike_deviations", "12"]
    runs: list[dict[str, Any]] = [
        {"name": "calm"},
        {"name": "glitch", "faults": "nan rank=1 step=18"},
        {"name": "skip", "faults": "nan position=100", "more": ["--resilience.on_anomaly", "skip"]},
        {
            "name": "skip_glitch",
            "faults": "nan rank=1 step=18",
            "more": ["--resilience.on_anomaly", "skip"],
        },
        {"name": "stop", "faults": "nan position=100", "more": ["--resilience.on_anomaly", "stop"]},
        {
            "name": "cap",
            "faults": "nan position=11; nan position=160",
            "more": ["--resilience.max_rollbacks", "1"],
        },
        {"name": "spike", "faults": "nan position=200 factor=1000", "more": window, "stop_at": 18},
        {"name": "spike", "faults": "nan position=200 factor=1000", "more": window},
        {"name": "born", "more": ["--data.skips", "200", "202"]},
        {"name": "diverged", "diverged": 26, "more": [*window, "--checkpoint.every_steps", "8"]},
    ]
    reasons = run_ranks(
        f"{WORKERS}:lives",
        2,
        tmp_path / "logs",
        corpus=corpus,
        folder=str(tmp_path),
        runs=[{"engine": reference, **one} for one in runs],
    )
    names = [one["name"] for one in runs]
    ends = dict(zip(names, reasons[0], strict=True))
    assert {name for name, end in ends.items() if end == "failed"} == {"skip_glitch", "stop", "cap"}
    for name in ends:
        assert audit(tmp_path / name, []).problems == [], name
        assert [line["step"] for line in metrics(tmp_path / name)][-1] == (
            {"skip_glitch": 18, "stop": 13, "cap": 20}.get(name, 40)
        )

    # Bad hardware: nothing is left out, and the same steps end in the same weights.
    [found] = events(tmp_path / "glitch", "anomaly")
    assert (found["blame"], found["ranks"], found["step"]) == ("hardware", [1], 18)
    assert differences(last(tmp_path / "glitch"), last(tmp_path / "calm")) == []
    assert metrics(tmp_path / "glitch") == metrics(tmp_path / "calm")

    # Skipped: a step without an update, and an event.
    [found] = events(tmp_path / "skip", "skip")
    assert found["step"] == 13
    assert differences(last(tmp_path / "skip"), last(tmp_path / "calm")) != []
    assert metrics(tmp_path / "skip")[12]["loss"] == "NaN"
    assert metrics(tmp_path / "skip")[:12] == metrics(tmp_path / "calm")[:12]

    # A spike against a window that went through a checkpoint.
    [found] = events(tmp_path / "spike", "anomaly")
    assert found["positions"] == [[200, 202]]
    assert found["value"] > found["limit"]
    assert differences(last(tmp_path / "spike"), last(tmp_path / "born")) == []
    assert metrics(tmp_path / "spike") == metrics(tmp_path / "born")

    # Other data did not help: the checkpoint itself is to blame.
    diverged = tmp_path / "diverged"
    assert [e["step"] for e in events(diverged, "rollback")] == [24, 16]
    names = {path.name for path in (diverged / "checkpoints").iterdir()}
    assert names == {"step_00000024", "step_00000024.abandoned", "step_00000032", "step_00000040"}


def test_replicas_that_disagree_end_the_attempt_and_are_never_saved(
    corpus: str, tmp_path: Path
) -> None:
    """A bit turns over on a rank of 3: a majority names it. The next attempt ends as a calm one."""
    every_step = ["--resilience.compare_replicas_every", "1"]
    before_saves = ["--resilience.compare_replicas_every", "None"]
    kinds: dict[str, tuple[dict[str, Any], list[str], dict[str, Any], int]] = {
        # engine, words, fault, step at which it is found
        "reference": ({"kind": "reference"}, before_saves, {"faults": "flip rank=1 step=21"}, 30),
        "zero2": ({"zero_stage": 2}, every_step, {"flip": [1, 20]}, 20),
    }
    runs: list[dict[str, Any]] = []
    for name, (engine, more, fault, _) in kinds.items():
        plain = {"name": name, "engine": engine, "more": more}
        runs += [{**plain, **fault}, plain, {**plain, "name": f"{name}_calm"}]
    reasons = run_ranks(
        f"{WORKERS}:lives", 3, tmp_path / "logs", corpus=corpus, folder=str(tmp_path), runs=runs
    )
    assert reasons[0] == ["failed", "finished", "finished"] * len(kinds)
    for name, (_, _, _, found_at) in kinds.items():
        [found] = events(tmp_path / name, "corruption")
        assert (found["ranks"], found["step"]) == ([1], found_at), name
        assert found["values"][0] == found["values"][2] != found["values"][1], name
        # What the next attempt began with is of before the flip.
        assert [e["step"] for e in events(tmp_path / name, "resume")] == [15], name
        assert differences(last(tmp_path / name), last(tmp_path / f"{name}_calm")) == [], name
        assert audit(tmp_path / name, []).problems == [], name


def test_of_two_replicas_the_replay_tells_which_was_wrong(corpus: str, tmp_path: Path) -> None:
    plain = {"name": "run", "engine": {"kind": "reference"}}
    runs = [{**plain, "faults": "flip rank=1 step=17"}, plain]
    reasons = run_ranks(
        f"{WORKERS}:lives", 2, tmp_path / "logs", corpus=corpus, folder=str(tmp_path), runs=runs
    )
    assert reasons[0] == ["failed", "finished"]
    [found] = events(tmp_path / "run", "corruption")
    assert (found["ranks"], found["step"]) == ([], 30)
    [resolved] = events(tmp_path / "run", "corruption_resolved")
    assert (resolved["ranks"], resolved["step"]) == ([1], 30)
