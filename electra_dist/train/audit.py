"""Proof from a run's folder and its corpus that every position was used exactly once.

    ledger        its chain of hashes holds; resumes declare what is repeated; what counts covers
                  each position up to the last step once, but for declared skips
    checksums     of the tensors that the engines were given, made again from the corpus
    checkpoint    the newest one stands where the ledger has been, on this corpus and config

A forger who also rebuilds the hashes is found by the checksums, for any position, row or mask that
was changed; one who cuts the end of the ledger off, by the checkpoint. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from electra_dist.checkpoint.layout import (
    CorruptCheckpoint,
    list_checkpoints,
    read_manifest,
    read_state,
)
from electra_dist.config import changes, files
from electra_dist.config.schema import RunConfig
from electra_dist.data.corpora import Corpora
from electra_dist.data.order import Skips
from electra_dist.data.stream import CorpusStream
from electra_dist.errors import UserError
from electra_dist.train.history import History, LedgerProblem, read_history

Progress = Callable[[int, int], None]
"""Called with the updates checked so far and their number in all."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found."""

    run: Path
    history: History | None
    """None where the ledger itself can't be true."""
    checked: range
    """Updates whose checksums were made again."""
    checkpoint: str
    """Name of the newest checkpoint, or "none yet"."""
    problems: list[str]
    """Sentences that say where; empty is proof."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        history = self.history
        counts: dict[str, Any] = {}
        if history is not None:
            counts = {
                "steps": len(history.steps),
                "positions": history.position,
                "skipped": [list(interval) for interval in history.skips],
                "attempts": history.attempt,
                "resumes": [update for _, update in history.resumes],
                "repeated_steps": sum(map(len, history.repeated.values())),
                "half_lines": history.half_lines,
            }
        return {
            "run": str(self.run),
            "holds": not self.problems,
            **counts,
            "checked_steps": [self.checked.start, self.checked.stop],
            "checkpoint": self.checkpoint,
            "problems": self.problems,
        }


def audit(
    run_folder: Path,
    overrides: list[str],
    steps: range | None = None,
    progress: Progress = lambda *_: None,
) -> Audit:
    """Check the ledger of a run, its newest checkpoint, and the checksums of `steps`.

    Args:
        run_folder: RUN, which may be training at this moment.
        overrides: where the corpus lies now, such as ``["--data.corpus", "moved"]``.
        steps: updates, counted from 0, whose checksums are made again (default: all).
        progress: is told how far that is.

    Raises:
        UserError: this is no run folder, the corpus is not there, or an override changes the run.
    """
    config, corpora = _opened(run_folder, overrides)
    # Before the ledger, which a run that is training takes further at any moment.
    checkpoint, state = _newest_state(run_folder)
    try:
        history = read_history(
            run_folder / "ledger.jsonl", config.batch.global_batch_size, config.data.skips
        )
    except LedgerProblem as problem:
        return Audit(
            run=run_folder,
            history=None,
            checked=range(0),
            checkpoint=checkpoint,
            problems=[f"ledger.jsonl, {problem}"],
        )
    if steps is not None and steps.start >= history.num_recorded:
        raise UserError(
            f"--steps {steps.start}:{steps.stop} lies beyond the {history.num_recorded} updates in "
            f"{run_folder / 'ledger.jsonl'}; updates are counted from 0"
        )
    if isinstance(state, str):
        problems = [state]
    else:
        problems = list(_differences(checkpoint, state, history, config, corpora)) if state else []
    # Over another corpus every checksum differs: the one sentence that says so is enough.
    checked = range(0)
    if not problems:
        checked = range(history.num_recorded) if steps is None else steps
        checked = checked[: history.num_recorded - checked.start]
        problems = _wrong_checksums(history, config, corpora, checked, progress)
    return Audit(
        run=run_folder,
        history=history,
        checked=checked,
        checkpoint=checkpoint,
        problems=problems,
    )


def _opened(run_folder: Path, overrides: list[str]) -> tuple[RunConfig, Corpora]:
    path = run_folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{run_folder} is not a run folder (it has no config.json); "
            "give the folder that pretrain got as --out"
        )
    own = files.read_json(path)
    config = files.load(path, overrides)
    changed = changes.forbidden_differences(own, config)
    if changed:
        raise UserError(
            f"an audit is of the run as it was, not with {'; '.join(changed)}; "
            "only where data.corpus or data.blend lies may change"
        )
    return config, Corpora.open(config.data)


def _newest_state(run_folder: Path) -> tuple[str, dict[str, Any] | str | None]:
    """Name and state.json of the newest checkpoint, or what is wrong with it; None without one."""
    found = list_checkpoints(run_folder)
    if not found:
        return "none yet", None
    folder = found[-1].folder
    try:
        return folder.name, read_state(folder, read_manifest(folder))
    except CorruptCheckpoint as error:
        return folder.name, str(error)


def _differences(
    name: str, state: dict[str, Any], history: History, config: RunConfig, corpora: Corpora
) -> Iterator[str]:
    step, position = state["step"], state["position"]
    skips: Skips = tuple((first, last) for first, last in state["skipped_positions"])
    if state["corpus_fingerprint"] != corpora.fingerprint:
        yield (
            f"{name} was trained on corpus {state['corpus_fingerprint']}, and "
            f"{', '.join(config.data.folders)} is {corpora.fingerprint}"
        )
    if state["config_fingerprint"] != changes.fingerprint(config):
        yield (
            f"{name} was trained with config {state['config_fingerprint']}, and config.json is "
            f"{changes.fingerprint(config)}"
        )
    if step > len(history.steps):
        yield (
            f"{name} is of step {step}, but the ledger ends with step {len(history.steps)}: "
            "the records of the last steps are gone"
        )
    elif position != step * history.global_batch_size:
        yield (
            f"{name} stands at position {position:,}, but step {step} ends at "
            f"{step * history.global_batch_size:,}"
        )
    elif step and history.skips_before(step, skips) != history.skips_before(
        step, history.steps[step - 1].skips
    ):
        yield f"{name} skips other positions before step {step} than the ledger"


def _wrong_checksums(
    history: History, config: RunConfig, corpora: Corpora, checked: range, progress: Progress
) -> list[str]:
    """Make the checksums of the updates again, in all records; one sentence if any differ."""
    wrong: list[tuple[int, str]] = []
    with closing(CorpusStream(config, corpora)) as stream:
        for update in checked:
            expected: dict[Skips, int] = {}
            for step in history.records(update):
                if step.skips not in expected:
                    expected[step.skips] = _checksum(stream, config, update, step.skips)
                if step.checksum != expected[step.skips]:
                    words = (
                        f"ledger.jsonl, line {step.line}: step {update + 1} was given tensors with "
                        f"checksum {step.checksum:016x}, but the corpus gives "
                        f"{expected[step.skips]:016x}"
                    )
                    wrong.append((step.line, words))
            progress(update + 1 - checked.start, len(checked))
    if not wrong:
        return []
    more = f"; {len(wrong) - 1} more lines differ" if len(wrong) > 1 else ""
    return [min(wrong)[1] + more]


def _checksum(stream: CorpusStream, config: RunConfig, update: int, skips: Skips) -> int:
    """As the ranks agree on it: the sum over all micro-batches, modulo 2**64."""
    position = update * config.batch.global_batch_size
    return (
        sum(
            stream.micro_batch(update, index, position, skips=skips).checksum
            for index in range(config.batch.num_micro_batches)
        )
        % 2**64
    )


def render(found: Audit) -> str:
    """For people."""
    if found.problems:
        return "\n".join(found.problems)
    history = found.history
    assert history is not None, "a ledger that can't be read is a problem"
    skipped = sum(last - first for first, last in history.skips)
    repeated = sum(map(len, history.repeated.values()))
    but = f", but for {skipped:,} declared as skipped" if skipped else ""
    first, last = found.checked.start, found.checked.stop
    return (
        f"{found.run}: {history.position:,} positions were used exactly once each{but}, in "
        f"{len(history.steps):,} steps\n"
        f"  declared: {max(0, len(history.resumes) - 1):,} resumes and roll-backs, "
        f"{repeated:,} steps done again\n"
        f"  updates {first:,} to {last:,}: the corpus gives what the engines were given\n"
        f"  newest checkpoint: {found.checkpoint}"
    )
