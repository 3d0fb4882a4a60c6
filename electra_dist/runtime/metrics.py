"""What a run measures, step by step: RUN/metrics.jsonl always, TensorBoard, and the console.

    {"step": 120, "loss": 41.3, "lr": 0.0005, ..., "eval": {...}, "timing": {"tokens_per_s": ...}}

What depends on the clock stands under `timing`; all else is the same, byte for byte, in two equal
runs and in a run that was interrupted. Only rank 0 has a writer.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from electra_dist.config.lines import append_line
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.board import Board
from electra_dist.runtime.files import parse_line, write_bytes_atomic

log = logging.getLogger(__name__)


TUG_OF_WAR = {
    title: ["Multiline", names]
    for title, names in {
        "losses": ["train/generator_loss", "train/discriminator_loss"],
        "gradient norms": [
            "train/grad_norm_generator",
            "train/grad_norm_discriminator",
            "train/grad_norm_shared",
        ],
        "replaced, and found": [
            "train/replaced_share",
            "eval/generator_sampled_accuracy",
            "eval/own_disc_recall",
            "eval/own_disc_precision",
        ],
        "discriminator's AUC": ["eval/own_disc_auc", "eval/unigram_disc_auc"],
    }.items()
}
"""TensorBoard's page of custom scalars: what tells whether one tower gets ahead of the other."""


def is_logged(step: int, log_every: int, num_steps: int) -> bool:
    """Whether `step` gets a line: the first, the last and every `log_every`-th one."""
    return step in (1, num_steps) or step % log_every == 0


class MetricsWriter:
    """Writes the metrics of one attempt.

    Two names in `timing` have a meaning here: `step_seconds`, the mean time of a step since the
    last logged one (the ETA is computed from it), and `tokens_per_s`; both are the caller's
    differences of a monotonic clock.
    """

    def __init__(
        self,
        run_folder: Path,
        attempt: Attempt,
        *,
        tensorboard: bool,
        log_every: int,
        num_steps: int,
    ) -> None:
        self.path = run_folder / "metrics.jsonl"
        self._tensorboard_folder = run_folder / "tensorboard" if tensorboard else None
        self._attempt = attempt
        self._log_every = log_every
        self._num_steps = num_steps
        self._last_step = 0
        self._unwritten: list[str] = []
        self._board: Board | None = None
        self._purge_step: int | None = None

    def is_logged(self, step: int) -> bool:
        """Whether `step` gets a line: the first, the last and every `log_every`-th one."""
        return is_logged(step, self._log_every, self._num_steps)

    def record(
        self,
        step: int,
        values: Mapping[str, float],
        timing: Mapping[str, float],
        evaluation: Mapping[str, float] | None = None,
    ) -> None:
        """Write what step `step` gave, if it is a logged one or was evaluated after.

        A full disk does not end a run: the line is kept, said loudly, and written with the next.

        Args:
            step: optimizer steps completed, above every step recorded before.
            values: reproducible numbers, such as losses, lr, grad_norm, samples, tokens.
            timing: numbers that depend on the clock; see the class.
            evaluation: held-out metrics, if there was an evaluation after this step.

        Raises:
            Superseded: a later attempt owns the run folder; nothing was written.
        """
        if evaluation is None and not self.is_logged(step):
            return
        assert step > self._last_step, f"step {step} is recorded after step {self._last_step}"
        self._attempt.check_current()
        self._last_step = step
        line: dict[str, Any] = {"step": step, **_finite(values)}
        if evaluation is not None:
            line["eval"] = _finite(evaluation)
        line["timing"] = _finite(timing)
        self._unwritten.append(json.dumps(line, allow_nan=False))
        try:
            append_line(self.path, "\n".join(self._unwritten))
            self._unwritten.clear()
        except OSError as error:
            log.error("metrics of step %d are not written yet: %s", step, error)
        try:
            self._write_board(step, values, timing, evaluation or {})
        except OSError as error:
            self._board = None  # its file may end in half a record, which hides what follows
            log.error("TensorBoard's points of step %d are lost: %s", step, error)
        log.info("%s", console_line(step, self._num_steps, values, timing))
        if evaluation is not None:
            log.info("  held out  %s", "  ".join(f"{k} {v:.4g}" for k, v in evaluation.items()))

    def truncate_after(self, step: int) -> None:
        """Forget everything after `step`, on disk too: for a resume or a roll-back to `step`.

        Lines of later steps and a half-written end are dropped in one rename; TensorBoard hides its
        later points.

        Raises:
            Superseded: a later attempt owns the run folder.
        """
        self._attempt.check_current()
        self._board = None
        self._unwritten = [text for text in self._unwritten if json.loads(text)["step"] <= step]
        self._last_step = step
        self._purge_step = step + 1
        if not self.path.exists():
            return
        # Lines stay as they stand: reading and writing numbers again could change bytes.
        old = self.path.read_bytes()
        new = b"".join(line + b"\n" for line in old.split(b"\n") if _step_of(line) <= step)
        if new != old:
            write_bytes_atomic(self.path, new)

    def _write_board(
        self,
        step: int,
        values: Mapping[str, float],
        timing: Mapping[str, float],
        evaluation: Mapping[str, float],
    ) -> None:
        if self._tensorboard_folder is None:
            return
        if self._board is None:
            self._board = Board(
                self._tensorboard_folder, {"tug of war": TUG_OF_WAR}, purge_step=self._purge_step
            )
        groups = {"train": values, "eval": evaluation, "timing": timing}
        points = self._board.points(step, groups)
        # Asked again: the line before it may have waited for the disk, or the process been stopped.
        self._attempt.check_current()
        self._board.append(points)


def _finite(values: Mapping[str, float]) -> dict[str, float | str]:
    """JSON has no NaN and no infinity: they become the names that float() and Number() read."""
    names = {math.inf: "Infinity", -math.inf: "-Infinity"}
    return {
        name: value if math.isfinite(value) else names.get(value, "NaN")
        for name, value in values.items()
    }


def _step_of(line: bytes) -> float:
    """The step of a whole line; infinity for a half-written or empty one."""
    record = parse_line(line)
    step = record.get("step") if record is not None else None
    return step if isinstance(step, int) else math.inf


def console_line(
    step: int, num_steps: int, values: Mapping[str, float], timing: Mapping[str, float]
) -> str:
    """One line in columns that stay where they are while a run goes on."""
    width = len(f"{num_steps:,}")
    cells = [f"step {step:>{width},}/{num_steps:,}"]
    cells += [f"{name} {value:8.4f}" for name, value in values.items() if "loss" in name]
    if "lr" in values:
        cells.append(f"lr {values['lr']:.2e}")
    if "grad_norm" in values:
        cells.append(f"grad {values['grad_norm']:7.3f}")
    if "tokens_per_s" in timing:
        cells.append(f"{timing['tokens_per_s']:>10,.0f} tokens/s")
    if "step_seconds" in timing:
        cells.append(f"ETA {duration(timing['step_seconds'] * (num_steps - step))}")
    return "  ".join(cells)


def duration(seconds: float) -> str:
    """Seconds as a clock that always has the same width: "   3:25:07", "2d 03:25:07"."""
    if not math.isfinite(seconds):
        return f"{'?':>11}"
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour:02d}:{minute:02d}:{second:02d}"
    return f"{f'{days}d {clock}' if days else clock:>11}"
