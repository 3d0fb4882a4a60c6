"""Where a run goes on: its newest good checkpoint, or its beginning, or another run's state."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from electra_dist.config import changes, files
from electra_dist.config.schema import RunConfig
from electra_dist.engine.protocol import Engine
from electra_dist.errors import UserError
from electra_dist.model.electra import JointElectra
from electra_dist.model.padding import stored_parameters
from electra_dist.resilience.resume import check_state
from electra_dist.runtime.files import write_bytes_atomic, write_json_atomic
from electra_dist.train.beginning import Source, copy_history, fill
from electra_dist.train.environment import engine_words, environment
from electra_dist.train.ledger import Ledger
from electra_dist.train.replicas import look_for_case
from electra_dist.train.state import RunState

if TYPE_CHECKING:
    from electra_dist.train.build import Run

log = logging.getLogger(__name__)


def restore(run: Run, max_step: int | None = None) -> bool:
    """Put the run where its newest good checkpoint left it, or at its beginning. Collective.

    Args:
        run: whose engine is filled and whose `state` is set.
        max_step: take no checkpoint of a later step, and abandon those.

    Returns:
        Whether there was a checkpoint.

    Raises:
        UserError: there are checkpoints but none is good, or they are of another run.
    """
    saved = run.store.restore(run.engine, run.engine.parameter_shapes, max_step=max_step)
    if saved is not None:
        check_state(saved, changes.fingerprint(run.config), run.corpus_fingerprint)
        run.state = RunState.from_json(saved)
    elif run.state.step:
        run.state = RunState(skipped=run.config.data.skips)
        fill_with_initial_weights(run.engine, run.config)
    return saved is not None


def go_on_from(run: Run, state: RunState, *, forked_from: str | None = None) -> None:
    """Make `state` the state that steps go on from, in metrics.jsonl and the ledger too."""
    run.state = state
    if run.metrics is not None and run.ledger is not None:
        run.metrics.truncate_after(run.state.step)
        run.ledger.resumed(run.state, forked_from=forked_from)


def fill_with_initial_weights(engine: Engine, config: RunConfig) -> None:
    """Take an engine back to the weights of the seed, and to moments of zero."""
    initial = stored_parameters(JointElectra(config))
    for fragment in engine.local_fragments():
        if fragment.kind == "master":
            weights = initial[fragment.parameter].view(-1)
            stop = fragment.start + len(fragment.values)
            fragment.values.copy_(weights[fragment.start : stop])
        else:
            fragment.values.zero_()
    engine.state_restored()


def start_or_resume(run: Run, source: Source | None) -> None:
    """Go on from the newest good checkpoint, or start: from the seed, or with a source's state.

    Collective.
    """
    started = time.monotonic()
    run.store.remove_leftovers()
    saved = restore(run)
    if source is not None and not saved:
        _begin(run, source)
    else:
        declared = run.control.broadcast_json(
            run.ledger.declared() if run.ledger is not None else None,
            name="what roll-backs left out",
        )
        go_on_from(run, run.state.with_declared(declared))
    look_for_case(run)
    _write_down(run, "resume" if saved else "start", started)


def _begin(run: Run, source: Source) -> None:
    """Take the source's state and save it as this run's own, before anything says that it is one.

    Raises:
        UserError: the source cannot be read, or the checkpoint not be saved.
    """
    fill(run.engine, source, run.control)
    forked_from = str(source.run_folder.resolve()) if source.run_folder else None
    state = replace(run.state, num_updates=source.num_updates)
    if forked_from:
        state = RunState.from_json(source.state)
    if forked_from and run.ledger is not None:
        copy_history(source, run.attempt.run_folder)
        run.ledger = Ledger(run.attempt)
    go_on_from(run, state, forked_from=forked_from)
    if run.world.is_leader:
        run.events.append("fork" if forked_from else "init", step=run.state.step, **source.facts)
    run.save()
    if not run.store.wait():
        raise UserError(
            f"{run.attempt.run_folder}: the first checkpoint could not be saved (events.jsonl says "
            "why); make room there, or give another --out folder"
        )


def _write_down(run: Run, event: str, started: float) -> None:
    """What this run is, in its folder (rank 0)."""
    if run.world.is_leader:
        folder = run.attempt.run_folder
        write_bytes_atomic(folder / "config.json", files.to_json(run.config).encode())
        write_json_atomic(folder / "environment.json", environment(run.world, run.engine.device))
        log.info(
            "%s %s at step %d of %d on %d rank(s), %s",
            "resuming" if event == "resume" else "starting",
            run.attempt.run_folder,
            run.state.step,
            run.config.schedule.last_step,
            run.world.world_size,
            engine_words(run.config),
        )
        run.events.append(
            event,
            step=run.state.step,
            world_size=run.world.world_size,
            engine=engine_words(run.config),
            seconds=round(time.monotonic() - started, 3),
        )
