"""The ranks' comparison of what they share, as an event of the run and as a reason to end."""

from __future__ import annotations

import logging
import math
import socket
from dataclasses import asdict
from typing import TYPE_CHECKING

from electra_dist.resilience.replicas import Disagreement, OpenCase, open_case, wrong_ranks
from electra_dist.runtime.control import name_ranks
from electra_dist.runtime.files import read_json_lines

if TYPE_CHECKING:
    from electra_dist.train.build import Run

log = logging.getLogger(__name__)


def look_for_case(run: Run) -> None:
    """Take up what an earlier attempt could not decide; say it where nothing can be compared."""
    found = None
    if run.world.is_leader:
        found = open_case(
            read_json_lines(run.attempt.run_folder / "events.jsonl"),
            run.state.step,
            world_size=run.world.world_size,
            engine=run.replicas.engine_words,
        )
        if run.world.world_size > 1 and not run.replicas.exist:
            log.info("%s: ranks share nothing to be compared", run.replicas.engine_words)
    case = run.control.broadcast_json(found and asdict(found), name="an undecided corruption")
    if case is not None:
        run.replicas.case = OpenCase(**{**case, "values": tuple(case["values"])})


def replicas_agree(run: Run, is_due: bool) -> bool:
    """Compare if it is due, or if this step decides an earlier attempt's case. Collective.

    Returns:
        False: ranks disagree. The event says so; nothing of this state may be saved. Every
        checkpoint that is on disk, or on its way there, was compared before.
    """
    replicas, step = run.replicas, run.state.step
    decides = replicas.case is not None and replicas.case.step == step
    if not (is_due or decides) or not replicas.exist:
        return True
    disagreement = replicas.compare()
    if disagreement is not None:
        _report(run, disagreement)
        run.store.wait()
        return False
    replicas.last_agreed = step
    if decides and replicas.case is not None:
        wrong = wrong_ranks(
            replicas.case, replicas.value(replicas.case.tensor, replicas.case.index)
        )
        who = name_ranks(wrong) if wrong else "no rank alone"
        log.warning("step %d, made again after a corruption: %s was wrong", step, who)
        run.report("corruption_resolved", step=step, ranks=wrong)
        replicas.case = None
    return True


def _report(run: Run, found: Disagreement) -> None:
    hosts = run.control.all_gather_objects(socket.gethostname(), name="hosts")
    who = "who is wrong cannot be known before a replay"
    if found.ranks:
        who = f"{name_ranks(found.ranks)} differs from the majority"
    log.error(
        "step %d: ranks hold other bits of %s (%d tensors): %s",
        run.state.step,
        found.tensors[0],
        len(found.tensors),
        who,
    )
    run.report(
        "corruption",
        step=run.state.step,
        ranks=found.ranks,
        hosts=[hosts[rank] for rank in found.ranks or range(len(hosts))],
        tensors=found.tensors[:8],
        num_tensors=len(found.tensors),
        last_agreed=run.replicas.last_agreed,
        index=found.index,
        values=[value if math.isfinite(value) else str(value) for value in found.values],
        world_size=run.world.world_size,
        engine=run.replicas.engine_words,
    )
