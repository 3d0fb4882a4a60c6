"""Alarms of an evaluation, in the run's state and events."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from electra_dist.resilience.alarms import alarms

if TYPE_CHECKING:
    from electra_dist.train.build import Run

log = logging.getLogger(__name__)


def sound_alarms(run: Run, panel: Mapping[str, float]) -> None:
    """Report what this evaluation raises and the one before did not; a resume remembers that."""
    config = run.config
    first_step = config.metrics.alarms_from_step
    if run.state.step < (config.schedule.warmup_steps if first_step is None else first_step):
        return
    found = alarms(panel, config.metrics)
    for name, cause in found.items():
        if name not in run.state.alarms:
            log.warning("step %d: %s: %s", run.state.step, name, cause)
            run.report("alarm", step=run.state.step, alarm=name, cause=cause)
    run.state = replace(run.state, alarms=tuple(sorted(found)))
