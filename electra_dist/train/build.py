"""The assembly: config in, a run that is ready to train out."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from electra_dist.checkpoint.store import CheckpointStore
from electra_dist.config import files
from electra_dist.config.schema import RunConfig
from electra_dist.data.store import Array
from electra_dist.data.stream import CorpusStream
from electra_dist.engine.protocol import Engine
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.model.electra import JointElectra
from electra_dist.resilience.deadline import Ahead, guessed_save_seconds
from electra_dist.resilience.preempt import StopSignals
from electra_dist.resilience.resume import check_state
from electra_dist.runtime.attempt import Attempt, Events
from electra_dist.runtime.collectives import ProcessGroups
from electra_dist.runtime.control import Control
from electra_dist.runtime.files import read_json_lines, write_bytes_atomic, write_json_atomic
from electra_dist.runtime.metrics import MetricsWriter
from electra_dist.runtime.times import TimeBook
from electra_dist.runtime.world import World
from electra_dist.train.clock import RunClock
from electra_dist.train.environment import environment
from electra_dist.train.evaluate import FloatArray, unigram_log_probs
from electra_dist.train.join import Joined, join
from electra_dist.train.ledger import Ledger
from electra_dist.train.state import RunState

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """The built parts of one rank, and where the run is. Only `state` changes."""

    config: RunConfig
    groups: ProcessGroups
    attempt: Attempt
    stream: CorpusStream
    engine: Engine
    store: CheckpointStore
    events: Events
    stop_signals: StopSignals
    corpus_fingerprint: str
    frozen: Mapping[str, Array] | None
    """Held-out rows with recorded corruption; None where the corpus holds out none."""
    unigram_log_probs: FloatArray
    clock: RunClock
    metrics: MetricsWriter | None
    """Rank 0 only."""
    ledger: Ledger | None
    """Rank 0 only."""
    state: RunState = field(default_factory=RunState)

    @property
    def world(self) -> World:
        """This rank among the others."""
        return self.groups.world

    @property
    def control(self) -> Control:
        """Small exchanges between ranks."""
        return self.groups.control

    def save(self) -> None:
        """Begin a checkpoint of the current state, on every rank at the same step."""
        if self.ledger is not None:
            self.ledger.sync()
        state = self.state.to_json(
            config_fingerprint=files.fingerprint(self.config),
            corpus_fingerprint=self.corpus_fingerprint,
        )
        self.store.save(self.engine, self.state.step, state)

    def record(
        self,
        values: dict[str, float],
        timing: dict[str, float],
        evaluation: dict[str, float] | None,
    ) -> None:
        """Write a line of metrics where one is due (rank 0)."""
        if self.metrics is not None:
            self.metrics.record(self.state.step, values, timing, evaluation)

    def report(self, event: str, **details: Any) -> None:
        """Write an event (rank 0); a disk that is too full for it ends no run."""
        if self.world.is_leader:
            try:
                self.events.append(event, **details)
            except OSError as error:
                log.error("event %s %s could not be written: %s", event, details, error)

    def ledger_step(self, checksum: int) -> None:
        """Record the positions and checksum of the step that has just been made (rank 0)."""
        if self.ledger is not None:
            size = self.config.batch.global_batch_size
            self.ledger.stepped(self.state.step + 1, self.state.position, size, checksum)

    def stop_file_exists(self) -> bool:
        """Whether `electra-dist stop` has asked this run to end (rank 0 looks)."""
        return self.world.is_leader and (self.attempt.run_folder / "STOP").exists()

    def time_signs(self) -> tuple[float, float]:
        """Whether the step that is being made is the last safe one; and is there any time to lose?

        Rank 0's clock decides, the others add nothing to the sum.
        """
        if not self.world.is_leader:
            return 0.0, 0.0
        config, step = self.config, self.state.step + 1
        self.clock.saved(self.store.take_seconds())
        is_due = step % config.checkpoint.every_steps == 0
        ahead = Ahead(
            evaluates_next=(step + 1) % config.metrics.eval_every == 0,
            num_saves=self.store.num_in_flight + is_due,
        )
        signs = self.clock.signs(ahead)
        return float(signs.is_up), float(signs.hurry)

    def close(self) -> None:
        """End the threads and close the files."""
        self.store.close()
        self.stream.close()
        if self.metrics is not None:
            self.metrics.close()
        self.engine.close()


def build_run(config: RunConfig, run_folder: Path, environ: Mapping[str, str] = os.environ) -> Run:
    """Join the other ranks, build all parts, restore the newest good checkpoint. Collective.

    Raises:
        UserError: config, corpus, run folder or checkpoint do not fit.
        CollectiveError: a rank did not come.
    """
    return assemble(join(config, run_folder, environ))


def assemble(joined: Joined) -> Run:
    """Build stream, engine, store and metrics, and restore. Collective.

    Raises:
        UserError: packing or checkpoint do not fit.
    """
    config, corpora, attempt = joined.config, joined.corpora, joined.attempt
    world, control = joined.groups.world, joined.groups.control
    local_ranks = None
    if config.data.num_lanes > 1:
        local_ranks = control.all_gather_objects(world.local_rank, name="ranks of each node")
    engine = make_engine(config, world, joined.groups.device)
    run = Run(
        config=config,
        groups=joined.groups,
        attempt=attempt,
        stream=CorpusStream(config, corpora, world.rank, world.world_size, local_ranks),
        engine=engine,
        store=CheckpointStore(
            attempt,
            control,
            keep_last=config.checkpoint.keep_last,
            commit_timeout_seconds=config.resilience.commit_timeout_seconds,
            asynchronous=config.checkpoint.asynchronous,
            parity=config.checkpoint.parity,
        ),
        events=Events(attempt=attempt, rank=world.rank),
        stop_signals=joined.stop_signals,
        corpus_fingerprint=corpora.fingerprint,
        frozen=corpora.frozen(config.objective.mask_prob, config.metrics.eval_num_samples),
        unigram_log_probs=unigram_log_probs(corpora.unigram_counts()),
        clock=make_clock(joined, engine.parameter_shapes),
        metrics=_metrics_writer(config, attempt) if world.is_leader else None,
        ledger=Ledger(attempt) if world.is_leader else None,
        state=RunState(skipped=config.data.skips),
    )
    _start(run)
    run.store.prepare(run.engine)
    run.clock.book.begin(run.state.step)
    return run


def make_clock(joined: Joined, parameter_shapes: Mapping[str, tuple[int, ...]]) -> RunClock:
    """The clock of this rank: rank 0's knows the end of the job and how long saves took."""
    config, attempt, is_leader = joined.config, joined.attempt, joined.groups.world.is_leader
    num_elements = sum(math.prod(shape) for shape in parameter_shapes.values())
    events = read_json_lines(attempt.run_folder / "events.jsonl") if is_leader else []
    return RunClock(
        TimeBook(joined.launched, attempt if is_leader else None),
        joined.stop_signals,
        end=math.inf if joined.end is None else time.monotonic() + joined.end - time.time(),
        margin_seconds=config.resilience.end_margin_seconds,
        # Three float32 an element: the weight and two moments.
        guessed_save_seconds=guessed_save_seconds(12.0 * num_elements),
        rows_a_step=config.batch.global_batch_size,
        rows_an_evaluation=config.metrics.eval_num_samples,
        saves=[event["seconds"] for event in events if event.get("event") == "save"],
    )


def make_engine(config: RunConfig, world: World, device: torch.device) -> Engine:
    """The engine that `engine.kind` names, around a module with the seed's initial weights."""
    model = JointElectra(config)
    if config.engine.kind == "reference":
        return ReferenceEngine(model, config, world, device)
    from electra_dist.engine.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(model, config, world, device)


def restore(run: Run) -> bool:
    """Put the run where its newest good checkpoint left it, or at its beginning. Collective.

    Lines of metrics.jsonl after that step are cut off, and the ledger says from where steps go on.

    Returns:
        Whether there was a checkpoint.

    Raises:
        UserError: there are checkpoints but none is good, or they are of another run.
    """
    saved = run.store.restore(run.engine, run.engine.parameter_shapes)
    if saved is not None:
        check_state(saved, files.fingerprint(run.config), run.corpus_fingerprint)
        run.state = RunState.from_json(saved)
    elif run.state.step:
        run.state = RunState(skipped=run.config.data.skips)
        fill_with_initial_weights(run.engine, run.config)
    return saved is not None


def go_on_from(run: Run, state: RunState) -> None:
    """Make `state` the state that steps go on from, in metrics.jsonl and the ledger too."""
    run.state = state
    if run.metrics is not None and run.ledger is not None:
        run.metrics.truncate_after(run.state.step)
        run.ledger.resumed(run.state)


def fill_with_initial_weights(engine: Engine, config: RunConfig) -> None:
    """Take an engine back to the weights of the seed, and to moments of zero."""
    initial = dict(JointElectra(config).named_parameters())
    for fragment in engine.local_fragments():
        if fragment.kind == "master":
            weights = initial[fragment.parameter].detach().view(-1)
            stop = fragment.start + len(fragment.values)
            fragment.values.copy_(weights[fragment.start : stop])
        else:
            fragment.values.zero_()
    engine.state_restored()


def _start(run: Run) -> None:
    """Go on from the newest good checkpoint or start at step 0; write down what this run is."""
    started = time.monotonic()
    run.store.remove_leftovers()
    saved = restore(run)
    declared = run.control.broadcast_json(
        run.ledger.declared() if run.ledger is not None else None, name="what roll-backs left out"
    )
    go_on_from(run, run.state.with_declared(declared))
    if run.world.is_leader:
        folder = run.attempt.run_folder
        write_bytes_atomic(folder / "config.json", files.to_json(run.config).encode())
        write_json_atomic(folder / "environment.json", environment(run.world, run.engine.device))
        log.info(
            "%s %s at step %d of %d on %d rank(s), %s",
            "resuming" if saved else "starting",
            run.attempt.run_folder,
            run.state.step,
            run.config.schedule.last_step,
            run.world.world_size,
            engine_words(run.config),
        )
        run.events.append(
            "resume" if saved else "start",
            step=run.state.step,
            world_size=run.world.world_size,
            engine=engine_words(run.config),
            seconds=round(time.monotonic() - started, 3),
        )


def engine_words(config: RunConfig) -> str:
    """`DeepSpeed ZeRO-2 fp32`, or `reference fp32`."""
    name = (
        f"DeepSpeed ZeRO-{config.engine.zero_stage}"
        if config.engine.kind == "deepspeed"
        else "reference"
    )
    return f"{name} {config.engine.precision}"


def _metrics_writer(config: RunConfig, attempt: Attempt) -> MetricsWriter:
    return MetricsWriter(
        attempt.run_folder,
        attempt,
        tensorboard=config.metrics.tensorboard,
        log_every=config.metrics.log_every,
        num_steps=config.schedule.last_step,
    )
