"""Which checkpoints of a run may go, and their removal."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from electra_dist.checkpoint.commit import retire
from electra_dist.checkpoint.layout import CheckpointInfo, CorruptCheckpoint, list_checkpoints
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.config import files
from electra_dist.errors import UserError
from electra_dist.runtime.files import read_json_lines

DEFAULT_METRICS = ("unigram_disc_loss", "generator_loss")
"""The first that the run has. The unigram corruption is the same at every step; the loss on the
generator's own samples rises as the generator gets better."""
NEAR_SHARE = 0.1
"""An evaluation tells about a checkpoint if it is this share of metrics.eval_every away at most."""
NOBODY = 0
"""Attempts count from 1: what this leaves under step_N.tmp-0 is no attempt's."""

_HIGHER_IS_BETTER = re.compile(r"accuracy|precision|recall|_auc|_ap")


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What would be done."""

    kept: dict[Path, str]
    """Folder -> why."""
    removed: dict[Path, int]
    """Folder -> bytes."""
    metric: str | None
    """By which the best were chosen."""


def plan_pruning(
    run: Path, *, keep_last: int, keep_every: int | None, keep_best: int, metric: str | None
) -> Pruning:
    """Decide; the newest checkpoint that verifies (it is read whole) stays in any case.

    Args:
        run: RUN.
        keep_last: newest checkpoints to keep, at least 1.
        keep_every: keep those whose step is a multiple of it.
        keep_best: keep so many with the best held-out `metric` near them.
        metric: name in `eval` of metrics.jsonl; None: one of DEFAULT_METRICS.

    Raises:
        UserError: a number is out of range, the metric is unknown, or no checkpoint verifies.
    """
    for word, value in (("keep-last", keep_last), ("keep-every", keep_every)):
        if value is not None and value < 1:
            raise UserError(f"--{word} {value} must be at least 1")
    if keep_best < 0:
        raise UserError(f"--keep-best {keep_best} must be 0 or more")
    found = list_checkpoints(run)
    if not found:
        return Pruning(kept={}, removed={}, metric=None)
    kept: dict[Path, str] = {}
    for info in found[-keep_last:]:
        kept.setdefault(info.folder, f"one of the {keep_last} newest")
    for info in found if keep_every else ():
        if keep_every and info.step % keep_every == 0:
            kept.setdefault(info.folder, f"step is a multiple of {keep_every}")
    if keep_best:
        metric, near = _near_evaluations(run, found, metric)
        sign = -1.0 if _HIGHER_IS_BETTER.search(metric) else 1.0
        for info in sorted(near, key=lambda info: (sign * near[info], -info.step))[:keep_best]:
            kept.setdefault(info.folder, f"{metric} {near[info]:.4g}")
    removed = [info for info in found if info.folder not in kept]
    if removed:
        verified = _newest_verified(run, found)
        kept.setdefault(verified.folder, "the newest that verifies")
        removed = [info for info in removed if info.folder != verified.folder]
    return Pruning(
        kept=kept,
        removed={info.folder: _num_bytes(info.folder) for info in removed},
        metric=metric if keep_best else None,
    )


def carry_out(pruning: Pruning, run: Path) -> None:
    """Remove, oldest first; a kill at any moment leaves whole checkpoints only.

    Raises:
        OSError: one could not be renamed.
    """
    for leftover in (run / "checkpoints").glob(f"step_*.tmp-{NOBODY}"):
        shutil.rmtree(leftover, ignore_errors=True)
    for folder in pruning.removed:
        with contextlib.suppress(FileNotFoundError):  # the run's own retention was faster
            retire(folder, NOBODY)


def _near_evaluations(
    run: Path, found: list[CheckpointInfo], metric: str | None
) -> tuple[str, dict[CheckpointInfo, float]]:
    """The metric's name, and its value at the nearest evaluation of each that has one near."""
    evaluations = {
        line["step"]: line["eval"]
        for line in read_json_lines(run / "metrics.jsonl")
        if "eval" in line
    }
    names = sorted({name for values in evaluations.values() for name in values})
    chosen = metric or next((name for name in DEFAULT_METRICS if name in names), None)
    if chosen is None:
        raise UserError(
            f"{run} has no held-out evaluation in metrics.jsonl to find the best by; leave "
            "--keep-best out (its corpus needs held-out documents)"
        )
    if chosen not in names:
        raise UserError(
            f"--metric {chosen} is in no evaluation of {run}; give one of {', '.join(names)}"
        )
    if not ("loss" in chosen or _HIGHER_IS_BETTER.search(chosen)) or chosen.startswith("baseline"):
        raise UserError(f"--metric {chosen} says not how good a model is; give a loss or an AUC")
    reach = NEAR_SHARE * files.read_json(run / "config.json").metrics.eval_every
    near = {}
    for info in found:
        value = _nearest(evaluations, chosen, info.step, reach)
        if value is not None:
            near[info] = value
    return chosen, near


def _nearest(
    evaluations: Mapping[int, Mapping[str, float | str]], metric: str, step: int, reach: float
) -> float | None:
    for at in sorted(evaluations, key=lambda at: abs(at - step)):
        if abs(at - step) > reach:
            return None
        value = evaluations[at].get(metric)
        if isinstance(value, (int, float)):  # a NaN is written as a word
            return float(value)
    return None


def _newest_verified(run: Path, found: list[CheckpointInfo]) -> CheckpointInfo:
    problem = None
    for info in reversed(found):
        try:
            with CheckpointReader(info.folder) as reader:
                reader.verify()
            return info
        except CorruptCheckpoint as error:
            problem = problem or error
    raise UserError(f"{run}: no checkpoint verifies ({problem}); nothing was removed")


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
