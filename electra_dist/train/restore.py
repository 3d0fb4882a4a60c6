"""Where a run goes on: its newest good checkpoint, or its beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from electra_dist.config import files
from electra_dist.config.schema import RunConfig
from electra_dist.engine.protocol import Engine
from electra_dist.model.electra import JointElectra
from electra_dist.resilience.resume import check_state
from electra_dist.train.state import RunState

if TYPE_CHECKING:
    from electra_dist.train.build import Run


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
