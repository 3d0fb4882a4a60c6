"""kill -9 of a rank in the middle of a run: started again, it ends like the calm run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest

from electra_dist.checkpoint.layout import list_checkpoints
from electra_dist.checkpoint.reshard import differences
from electra_dist.train.audit import audit
from tests import made_up

pytestmark = pytest.mark.chaos
SLOW = [
    pytest.param(stage, ranks, marks=pytest.mark.slow)
    for stage in ("reference", "0", "1", "2", "3")
    for ranks in (1, 2)
    if (stage, ranks) != ("2", 2)
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made_up.corpus(tmp_path_factory.mktemp("corpus"), length=32))


def start(
    corpus: str,
    run: Path,
    stage: str,
    ranks: int,
    more: Mapping[str, str] = MappingProxyType({}),
    words: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """`electra-dist pretrain --nproc`: 40 steps of a small model, saved every 8."""
    engine = (
        ["--engine.kind", "reference"] if stage == "reference" else ["--engine.zero_stage", stage]
    )
    command = [sys.executable, "-m", "electra_dist", "pretrain", "--recipe", "tiny", *engine]
    command += ["--nproc", str(ranks), "--max-restarts", "0", "--out", str(run)]
    command += ["--data.corpus", corpus]
    command += ["--data.sequence_length", "32", "--model.num_layers", "2"]
    command += ["--model.generator_num_layers", "2", "--schedule.num_steps", "40"]
    command += ["--schedule.warmup_steps", "5", "--batch.global_batch_size", "8"]
    command += ["--batch.micro_batch_size", "2", "--engine.threads_per_rank", "1"]
    command += ["--checkpoint.every_steps", "8", "--metrics.log_every", "1"]
    command += ["--metrics.eval_every", "20", "--metrics.no-tensorboard", *words]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)


def lines(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    found = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in found]
    for record in records:
        del record["timing"]
    return records


def wait_for_step(run: Path, step: int, trainer: subprocess.Popen[bytes]) -> None:
    while trainer.poll() is None and not any(line["step"] >= step for line in lines(run)):
        time.sleep(0.02)
    assert trainer.poll() is None, "the run ended before it could be killed"


@pytest.mark.parametrize(("stage", "ranks"), [("2", 2), *SLOW])
def test_a_killed_run_ends_like_the_calm_one(
    stage: str, ranks: int, corpus: str, tmp_path: Path
) -> None:
    calm, broken = tmp_path / "calm", tmp_path / "broken"
    assert start(corpus, calm, stage, ranks).wait(timeout=300) == 0
    trainer = start(corpus, broken, stage, ranks)
    wait_for_step(broken, 20, trainer)
    psutil.Process(trainer.pid).children()[-1].kill()
    assert trainer.wait(timeout=300) == 1
    assert (
        not (broken / "attempts" / "0001" / "exit.json").exists()
        or json.loads((broken / "attempts" / "0001" / "exit.json").read_text())["reason"]
        == "failed"
    )
    # The save of step 16 may still have been in flight; the run had 12 steps more to go at most.
    assert list_checkpoints(broken)[-1].step in (8, 16, 24, 32)

    assert start(corpus, broken, stage, ranks).wait(timeout=300) == 0
    newest = [list_checkpoints(run)[-1].folder for run in (calm, broken)]
    assert differences(*newest) == []
    assert lines(broken) == lines(calm)
    assert [line["step"] for line in lines(broken)] == list(range(1, 41))
    assert audit(broken, []).problems == []
