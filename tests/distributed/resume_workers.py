"""What the ranks of the resume tests do: whole runs, several of them in one process group."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from electra_dist.config import files
from electra_dist.config.schema import RunConfig
from electra_dist.data.order import Skips
from electra_dist.resilience.faults import Fault
from electra_dist.resilience.guard import ExitReason
from electra_dist.resilience.preempt import StopSignals
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.collectives import ProcessGroups
from electra_dist.train import loop
from electra_dist.train.beginning import Beginning, open_source, still_wanted
from electra_dist.train.build import Run, assemble
from electra_dist.train.join import Joined, resolve_config

NUM_STEPS = 40
STOP_AT = 19


def small_run(corpus: str, engine: Mapping[str, Any], more: Sequence[str] = ()) -> RunConfig:
    """40 steps of a small model: dropout 0.1, sampling, 4 micro-batches a step."""
    values = {
        **({"--data.corpus": corpus} if corpus else {}),
        "--data.sequence_length": 32,
        "--model.num_layers": 2,
        "--model.generator_num_layers": 2,
        "--batch.global_batch_size": 8,
        "--batch.micro_batch_size": 2,
        "--schedule.num_steps": NUM_STEPS,
        "--schedule.warmup_steps": 5,
        "--engine.threads_per_rank": 1,
        "--checkpoint.every_steps": 15,
        "--metrics.log_every": 1,
        "--metrics.eval_every": 10,
        "--metrics.eval_num_samples": 8,
        **{f"--engine.{name}": value for name, value in engine.items()},
    }
    words = [word for name, value in values.items() for word in (name, str(value))]
    return files.load(None, [*words, "--metrics.no-tensorboard", *more], recipe="tiny")


def live(
    groups: ProcessGroups,
    config: RunConfig,
    folder: Path,
    stop_at: int | None,
    prepare: Callable[[Run], object] = lambda _: None,
    beginning: Beginning | None = None,
    faults: tuple[Fault, ...] = (),
) -> str:
    """One life of a run in `folder`: to its end, or to a real SIGTERM on the last rank."""
    signals = StopSignals()
    signals.install()
    config, corpora = resolve_config(config, folder, groups.world)
    beginning = still_wanted(beginning, folder)
    groups.control.barrier("all have looked")
    number = Attempt.claim(folder).number if groups.world.is_leader else 0
    number = groups.control.broadcast_json(number)
    joined = Joined(
        config=config,
        corpora=corpora,
        groups=groups,
        attempt=Attempt.join(folder, number),
        stop_signals=signals,
        launched=time.time(),
        end=None,
        source=open_source(beginning, config, corpora) if beginning else None,
        faults=faults,
    )
    run = assemble(joined)
    prepare(run)
    reason = train_until(run, stop_at)
    run.store.close()
    run.stream.close()
    run.engine.close()
    return reason.value


def train_until(run: Run, stop_at: int | None) -> ExitReason:
    """`loop.train`, with a SIGTERM to the last rank's own process when it starts step `stop_at`."""
    fetch = run.stream.micro_batches

    def fetch_and_signal(step: int, first_position: int, skips: Skips) -> Any:
        if step == stop_at and run.world.rank == run.world.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return fetch(step, first_position, skips)

    run.stream.micro_batches = fetch_and_signal  # type: ignore[method-assign]
    return loop.train(run)


def calm_and_stopped(
    groups: ProcessGroups, corpus: str, folder: str, engines: list[dict[str, Any]]
) -> list[list[str]]:
    """For each engine: one run in one life, and one that is stopped at about half and resumed."""
    steps = ["--schedule.num_steps", "24", "--checkpoint.every_steps", "9"]
    reasons = []
    for number, engine in enumerate(engines):
        config = small_run(corpus, engine, [*steps, "--metrics.eval_every", "6"])
        calm, broken = Path(folder) / f"calm_{number}", Path(folder) / f"broken_{number}"
        reasons.append(
            [
                live(groups, config, calm, None),
                live(groups, config, broken, 11),
                live(groups, config, broken, None),
            ]
        )
    return reasons


def one_life(
    groups: ProcessGroups,
    corpus: str,
    folder: str,
    engine: dict[str, Any],
    stop_step: int,
    more: Sequence[str] = (),
) -> str:
    """One life of a run to `stop_step`, with `more` words of its config."""
    config = small_run(corpus, engine, more)
    config = replace(config, schedule=replace(config.schedule, stop_step=stop_step))
    return live(groups, config, Path(folder), None)


def begun_from_another(groups: ProcessGroups, corpus: str, folder: str, longer: str) -> None:
    """Runs that begin from `source`, on the reference engine and on ZeRO 2 and 3."""
    base = Path(folder)

    def go(
        name: str,
        stop_step: int,
        *more: str,
        begin: Beginning | None = None,
        stop_at: int | None = None,
        zero_stage: int | None = None,
    ) -> str:
        engine = {"kind": "reference"} if zero_stage is None else {"zero_stage": zero_stage}
        config = small_run(corpus, engine, more)
        config = replace(config, schedule=replace(config.schedule, stop_step=stop_step))
        return live(groups, config, base / name, stop_at, beginning=begin)

    init = Beginning(source=base / "source")
    go("source", 15)
    go("calm", 10, begin=init)
    assert go("broken", 10, begin=init, stop_at=4) == "stopped"
    go("kept", 1, begin=replace(init, keep_moments=True))
    go("longer", 1, "--data.corpus", longer, "--data.sequence_length", "64", begin=init)
    fork = Beginning(source=base / "source/checkpoints/step_00000015", is_fork=True)
    go("fork", 30, begin=fork)
    go("whole", 30)
    rate = ("--optim.learning_rate", "1e-5", "--schedule.num_steps", "50")
    go("slower", 20, *rate, begin=fork)
    groups.control.barrier("all have read the source")
    if groups.world.is_leader:
        os.rename(base / "source", base / "gone")
    groups.control.barrier("the source is gone")
    # As a batch script that is queued again gives them: the words of the first start.
    assert go("broken", 7, begin=init) == "finished"
    assert go("broken", 10) == "finished"
    # Last: an engine of DeepSpeed's in the same process changes the last bits of the others.
    for stage in (2, 3):
        go(f"zero_{stage}", 2, zero_stage=stage, begin=Beginning(source=base / "gone"))
