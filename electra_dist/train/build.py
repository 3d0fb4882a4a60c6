"""The assembly: config in, a run that is ready to train out."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from electra_dist.checkpoint.store import CheckpointStore
from electra_dist.config import changes, variables
from electra_dist.config.accounting import num_parameters
from electra_dist.config.schema import RunConfig
from electra_dist.data.store import Array
from electra_dist.data.stream import CorpusStream, MicroBatch
from electra_dist.engine.protocol import Engine, StepOptions
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.engine.scaling import LossScale
from electra_dist.errors import UserError
from electra_dist.model.electra import JointElectra
from electra_dist.resilience.deadline import Ahead
from electra_dist.resilience.faults import Faults
from electra_dist.resilience.preempt import StopSignals
from electra_dist.resilience.replicas import Replicas
from electra_dist.resilience.stragglers import Stragglers
from electra_dist.runtime.attempt import Attempt, Events
from electra_dist.runtime.beats import Seat
from electra_dist.runtime.collectives import ProcessGroups
from electra_dist.runtime.control import Control
from electra_dist.runtime.metrics import MetricsWriter, is_logged
from electra_dist.runtime.peak import peak_of
from electra_dist.runtime.phases import Phases, phases_of_device
from electra_dist.runtime.world import World
from electra_dist.train.clock import RunClock, make_clock
from electra_dist.train.efficiency import Efficiency
from electra_dist.train.environment import engine_words
from electra_dist.train.evaluate import FloatArray, unigram_log_probs
from electra_dist.train.join import Joined, join
from electra_dist.train.ledger import Ledger
from electra_dist.train.restore import start_or_resume
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
    tokenizer_sha256: str
    frozen: Mapping[str, Array] | None
    """Held-out rows with recorded corruption; None where the corpus holds out none."""
    unigram_log_probs: FloatArray
    clock: RunClock
    phases: Phases
    faults: Faults
    seats: list[Seat]
    """Of each rank, by rank."""
    stragglers: Stragglers
    metrics: MetricsWriter | None
    """Rank 0 only."""
    efficiency: Efficiency | None = field(default=None, init=False)
    """Rank 0 only."""
    ledger: Ledger | None
    """Rank 0 only."""
    replicas: Replicas
    last_rollback: tuple[int, int] | None = None
    """From which step, and to which, in this attempt."""
    state: RunState = field(default_factory=RunState)

    @property
    def world(self) -> World:
        """This rank among the others."""
        return self.groups.world

    @property
    def control(self) -> Control:
        """Small exchanges between ranks."""
        return self.groups.control

    def fetch(self) -> list[MicroBatch]:
        """This rank's passes of the next step."""
        state = self.state
        return self.faults.disturbed(
            self.stream.micro_batches(state.step, state.position, state.skipped),
            state.step + 1,
            lambda index: self.stream.positions(index, state.position, state.skipped),
        )

    @property
    def loss_scale(self) -> LossScale | None:
        """Of the next step, in fp16."""
        engine = self.config.engine
        if engine.precision != "fp16":
            return None
        return self.state.loss_scale or LossScale(scale=engine.initial_loss_scale)

    def step_options(self) -> StepOptions:
        """What the next step needs of the run's state, the same on every rank."""
        step, scale = self.state.step + 1, self.loss_scale
        return StepOptions(
            num_updates=self.state.num_updates,
            loss_scale=scale.scale if scale else 1.0,
            measures_norms=is_logged(
                step, self.config.metrics.log_every, self.config.schedule.last_step
            ),
        )

    def save(self) -> None:
        """Begin a checkpoint of the current state, on every rank at the same step."""
        with self.phases.enter("save"):
            if self.ledger is not None:
                self.ledger.sync()
            state = self.state.to_json(
                config_fingerprint=changes.fingerprint(self.config),
                corpus_fingerprint=self.corpus_fingerprint,
                tokenizer_sha256=self.tokenizer_sha256,
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
    mine = [world.local_rank, socket.gethostname()]
    seats = [Seat(*one) for one in control.all_gather_objects(mine, name="ranks of each node")]
    local_ranks = [seat.local_rank for seat in seats] if config.data.num_lanes > 1 else None
    of_device = phases_of_device(joined.groups.device.type, config.engine.zero_stage)
    control.phases = phases = Phases(of_device=of_device)
    special_ids = asdict(corpora.first.special_ids)
    engine = make_engine(config, world, joined.groups.device, phases, special_ids)
    faults = Faults(joined.faults, world.rank, attempt, engine.module)
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
            phases=phases,
            before_write=faults.before_write,
        ),
        events=Events(attempt=attempt, rank=world.rank),
        stop_signals=joined.stop_signals,
        corpus_fingerprint=corpora.fingerprint,
        tokenizer_sha256=corpora.first.manifest["tokenizer"]["sha256"],
        frozen=corpora.frozen(config.objective.mask_prob, config.metrics.eval_num_samples),
        unigram_log_probs=unigram_log_probs(corpora.unigram_counts()),
        replicas=Replicas(engine, control, engine_words(config)),
        clock=make_clock(joined, engine.parameter_shapes),
        phases=phases,
        faults=faults,
        seats=seats,
        stragglers=Stragglers(phases, control, [s.host for s in seats], config.resilience),
        metrics=_metrics_writer(config, attempt) if world.is_leader else None,
        ledger=Ledger(attempt) if world.is_leader else None,
        state=RunState(skipped=config.data.skips),
    )
    start_or_resume(run, joined.source)
    if joined.faults:
        run.report("fault", cause=variables.FAULTS, faults=[f.words for f in joined.faults])
        phases.on_enter.append(faults.entered)
    run.store.prepare(run.engine)
    if world.is_leader:
        run.efficiency = _efficiency(run)
    run.clock.book.begin(run.state.step)
    return run


def make_engine(
    config: RunConfig,
    world: World,
    device: torch.device,
    phases: Phases | None = None,
    special_ids: Mapping[str, int] | None = None,
) -> Engine:
    """The engine that `engine.kind` names, around a module with the seed's initial weights.

    Raises:
        UserError: the weights do not fit into the memory of this machine.
    """
    try:
        model = JointElectra(config, special_ids)
    except (RuntimeError, TypeError, MemoryError) as error:  # TypeError: a size over 64 bits
        if isinstance(error, MemoryError) or re.search("alloc|overflow", str(error), re.IGNORECASE):
            raise _too_large(config) from error
        raise
    if config.engine.kind == "reference":
        return ReferenceEngine(model, config, world, device, phases=phases)
    from electra_dist.engine.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(model, config, world, device, phases=phases)


def _too_large(config: RunConfig) -> UserError:
    names = ("hidden_size", "embedding_size", "num_layers", "max_position_embeddings")
    sizes = ", ".join(f"model.{name} = {getattr(config.model, name)}" for name in names)
    return UserError(
        f"{sizes}: the weights, {4 * num_parameters(config)['joint']:.1e} bytes in fp32, do not "
        "fit into this machine's memory; make the model smaller (`electra-dist plan` says what "
        "one needs)"
    )


def _efficiency(run: Run) -> Efficiency:
    """Measures or looks up the peak, and says in the log what MFU will mean."""
    config, device = run.config, run.engine.device
    peak = peak_of(device, config.engine.precision, config.metrics.peak_tflops)
    if peak is None:
        log.info("no MFU: the peak of this device is not known; set metrics.peak_tflops")
    else:
        log.info("MFU of %.4g TFLOP/s a rank: %s", peak.flops_per_s / 1e12, peak.source)
    return Efficiency(
        config,
        run.world.world_size,
        device,
        peak,
        run.engine.local_fragments(),
        run.store.buffer_bytes,
    )


def _metrics_writer(config: RunConfig, attempt: Attempt) -> MetricsWriter:
    return MetricsWriter(
        attempt.run_folder,
        attempt,
        tensorboard=config.metrics.tensorboard,
        log_every=config.metrics.log_every,
        num_steps=config.schedule.last_step,
    )
