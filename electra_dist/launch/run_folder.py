"""What a run is doing, from its folder alone: no torch, no scheduler, no contact with the run.

Reads config.json, metrics.jsonl, events.jsonl, attempts/, heartbeat/ and the names under
checkpoints/. A run may be writing while this reads: half-written lines and
files are passed over.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from electra_dist.errors import UserError
from electra_dist.launch.goodput import WORDS, read_attempts, split
from electra_dist.launch.heartbeats import RankBeat, heartbeats, in_words
from electra_dist.launch.jobs import JobStatus, is_run
from electra_dist.launch.jobs import in_words as job_in_words
from electra_dist.launch.records import (
    TAIL_BYTES,
    attempt_folders,
    complete_checkpoints,
    number,
    read_json,
    read_lines,
    section,
)

SILENT_AFTER_SECONDS = 120.0
"""A run without exit.json that has written nothing for this long, and for five times its usual
interval, is called silent: it crashed, hangs, or computes something very long."""

NUM_EVENTS = 5


@dataclass(frozen=True, kw_only=True)
class AttemptStatus:
    """One life of the run's processes."""

    number: int
    reason: str | None
    """Why it ended, from its exit.json; None if that is missing: it is running, or it crashed."""
    step: int | None
    """Steps completed when it ended."""
    exit_code: int | None


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What the folder says at one moment; `as_json` and `render` show it."""

    folder: str
    name: str
    recipe: str | None
    state: str
    """not started, running, silent, restarting, or why the newest attempt ended (finished, ...)."""
    silent_seconds: float | None
    """Since the run last wrote anything."""
    step: int
    num_steps: int | None
    metrics: dict[str, Any]
    """The newest line of metrics.jsonl without `eval` and `timing`."""
    tokens_per_s: float | None
    eta_seconds: float | None
    """Of a running run only, at the speed of its newest line."""
    held_out: dict[str, Any] | None
    """The newest evaluation, with its `step`."""
    checkpoints: list[str]
    """Names of the complete checkpoints, oldest first."""
    attempts: list[AttemptStatus]
    heartbeats: list[RankBeat]
    """Where each rank of the newest attempt was at its node's last sign of life."""
    jobs: list[dict[str, Any]]
    """The newest ends of Slurm jobs: job, why, action (requeue or leave), exits_with ..."""
    events: list[dict[str, Any]]
    """The newest few."""
    goodput: dict[str, Any] | None
    """Where the wall time of all attempts went; None for runs of versions that did not keep it."""
    slurm: Sequence[JobStatus] = ()
    """What Slurm says of the run's jobs, where it is asked and knows them."""

    @property
    def is_running(self) -> bool:
        """Whether the newest attempt has not ended and wrote something lately."""
        return self.state == "running"


def run_status(run: Path, now: float | None = None) -> RunStatus:
    """Read the status of the run in folder `run`.

    Args:
        run: RUN, the folder given as --out.
        now: seconds since 1970, for tests; the clock's time if None.

    Raises:
        UserError: there is no such folder, or it is not a run's.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a folder: give the folder that pretrain got as --out.")
    if not is_run(run):
        raise UserError(
            f"{run} is not a run folder, it has neither config.json nor attempts: "
            "give the folder that pretrain got as --out."
        )
    config = read_json(run / "config.json")
    schedule = section(config, "schedule")
    lines = read_lines(run / "metrics.jsonl", TAIL_BYTES)
    lines = [line for line in lines if isinstance(line.get("step"), int)]
    newest = lines[-1] if lines else {}
    timing = section(newest, "timing")
    checkpoints = complete_checkpoints(run)
    attempts = _attempts(run)
    now = time.time() if now is None else now
    silent_seconds = _silent_seconds(run, now)
    state = _state(attempts, silent_seconds, _usual_interval(lines))
    if _waits_for_restart(run, attempts, silent_seconds):
        state = "restarting"
    goodput = split(read_attempts(run), now if state == "running" else None)
    num_steps = schedule.get("num_steps")
    steps = [newest.get("step", 0), *(int(name.removeprefix("step_")) for name in checkpoints[-1:])]
    steps += [a.step for a in attempts[-1:] if a.step is not None]
    step_seconds = number(timing.get("step_seconds"))
    left = (schedule.get("stop_step") or num_steps or 0) - max(steps)
    has_eta = state == "running" and step_seconds is not None and left >= 0
    return RunStatus(
        folder=str(run),
        name=run.resolve().name,
        recipe=config.get("recipe"),
        state=state,
        silent_seconds=silent_seconds,
        step=max(steps),
        num_steps=num_steps,
        metrics={k: v for k, v in newest.items() if k not in ("eval", "timing")},
        tokens_per_s=number(timing.get("tokens_per_s")),
        eta_seconds=step_seconds * left if has_eta and step_seconds is not None else None,
        held_out=next(
            ({"step": x["step"], **x["eval"]} for x in reversed(lines) if section(x, "eval")), None
        ),
        checkpoints=checkpoints,
        attempts=attempts,
        heartbeats=heartbeats(run, time.time() if now is None else now),
        jobs=read_lines(run / "requeue.jsonl", TAIL_BYTES)[-NUM_EVENTS:],
        events=read_lines(run / "events.jsonl", TAIL_BYTES)[-NUM_EVENTS:],
        goodput=asdict(goodput) if goodput else None,
    )


def as_json(status: RunStatus) -> dict[str, Any]:
    """The status as `electra-dist status --json` prints it."""
    return {**asdict(status), "is_running": status.is_running}


def render(status: RunStatus) -> str:
    """The status as text of a few aligned lines."""
    total = f" of {status.num_steps:,}" if status.num_steps else ""
    share = f" ({100 * status.step / status.num_steps:.1f} %)" if status.num_steps else ""
    recipe = f" (recipe {status.recipe})" if status.recipe else ""
    folder = f"  {status.folder}" if status.folder != status.name else ""
    rows = [
        ("run", f"{status.name}{recipe}{folder}"),
        ("state", _state_in_words(status)),
        ("step", f"{status.step:,}{total}{share}"),
    ]
    losses = {k: v for k, v in status.metrics.items() if "loss" in k}
    if losses:
        rows.append((f"at {status.metrics['step']:,}", _numbers(losses)))
    if status.tokens_per_s is not None:
        eta = f", ETA {span(status.eta_seconds)}" if status.eta_seconds is not None else ""
        rows.append(("speed", f"{status.tokens_per_s:,.0f} tokens/s{eta}"))
    if status.held_out:
        values = {k: v for k, v in status.held_out.items() if k != "step"}
        rows.append(("held out", f"at {status.held_out['step']:,}: {_numbers(values)}"))
    newest = status.checkpoints[-1] if status.checkpoints else "none"
    if status.heartbeats and status.state in ("running", "silent"):
        rows.append(("ranks", in_words(status.heartbeats)))
    rows.append(("checkpoint", f"{newest}, {len(status.checkpoints)} complete"))
    if status.goodput is not None:
        rows.append(("time", time_in_words(status.goodput)))
    rows += [(f"job {job.job}", job_in_words(job)) for job in status.slurm]
    rows += [(f"attempt {a.number}", _attempt_in_words(a, status)) for a in status.attempts[-5:]]
    rows += [(f"job {job.get('job')}", _job_in_words(job)) for job in status.jobs]
    rows += [("event", _event_in_words(event)) for event in status.events]
    return "\n".join(f"{label:<12}{text}" for label, text in rows)


def span(seconds: float) -> str:
    """Seconds in the unit a person would use: 42 s, 7 min, 3 h 20 min, 2 d 5 h."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes} min"
    if hours < 24:
        return f"{hours} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def time_in_words(goodput: dict[str, Any]) -> str:
    """The wall time and its parts, largest first, those under a thousandth left out."""
    whole = goodput["wall_seconds"]
    parts = sorted(goodput["seconds"].items(), key=lambda item: -item[1])
    shares = [
        f"{WORDS[part]} {100 * seconds / whole:.1f} %"
        for part, seconds in parts
        if seconds > whole / 1000
    ]
    return f"{span(whole)}: {', '.join(shares)}"


def _state_in_words(status: RunStatus) -> str:
    age = "" if status.silent_seconds is None else span(status.silent_seconds)
    if status.state == "running":
        return f"running, last sign of life {age} ago"
    if status.state == "restarting":
        return f"waiting to restart after a crash, {age} ago"
    if status.state == "silent":
        return f"silent for {age} without having ended: it crashed or hangs (see attempts/*/*.log)"
    return f"{status.state}, {age} ago" if age and status.attempts else status.state


def _attempt_in_words(attempt: AttemptStatus, status: RunStatus) -> str:
    if attempt.reason is not None:
        return f"{attempt.reason} at step {attempt.step}, exit code {attempt.exit_code}"
    if attempt is status.attempts[-1] and status.is_running:
        return "running"
    return "did not say why it ended (no exit.json)"


def _job_in_words(job: dict[str, Any]) -> str:
    done = "requeued" if job.get("action") == "requeue" else "ended"
    return f"{done}: {job.get('why')} ({job.get('time')})"


def _event_in_words(event: dict[str, Any]) -> str:
    hidden = ("time", "event", "attempt", "rank")
    # Events of older versions say cause=null where nobody asked.
    details = {k: v for k, v in event.items() if k not in hidden and v is not None}
    said = "  ".join(f"{k}={v}" for k, v in details.items())
    return f"{event.get('time', '?')}  {event.get('event', '?')}  {said}".rstrip()


def _numbers(values: dict[str, Any]) -> str:
    cells = []
    for name, value in values.items():
        found = number(value)
        cells.append(f"{name} {value if found is None else format(found, '.4g')}")
    return "  ".join(cells)


def _state(attempts: list[AttemptStatus], silent: float | None, usual_interval: float) -> str:
    if not attempts:
        return "not started"
    if attempts[-1].reason is not None:
        return attempts[-1].reason
    patience = max(SILENT_AFTER_SECONDS, 5 * usual_interval)
    return "running" if silent is not None and silent <= patience else "silent"


def _waits_for_restart(run: Path, attempts: list[AttemptStatus], silent: float | None) -> bool:
    """Whether a supervisor has said that it would start the ranks again, and still may."""
    last = (read_lines(run / "supervisor.jsonl", TAIL_BYTES) or [{}])[-1]
    newest = attempts[-1].number if attempts else None
    patience = SILENT_AFTER_SECONDS + (number(last.get("delay_seconds")) or 0.0)
    return (
        last.get("action") == "restart"
        and last.get("attempt") in (None, newest)
        and silent is not None
        and silent <= patience
    )


def _usual_interval(lines: list[dict[str, Any]]) -> float:
    """Seconds between the last two logged steps, 0 if unknown."""
    if len(lines) < 2:
        return 0.0
    seconds = number(section(lines[-1], "timing").get("step_seconds")) or 0.0
    return seconds * float(lines[-1]["step"] - lines[-2]["step"])


def _silent_seconds(run: Path, now: float) -> float | None:
    """Age of the newest thing that the run wrote; never under 0, for clocks of hosts differ."""
    names = ("metrics.jsonl", "events.jsonl", "supervisor.jsonl", "checkpoints")
    signs = [run / name for name in names]
    signs += run.glob("heartbeat/*")
    # Of the newest attempt only: old ones may hold hundreds of thousands of logs.
    for newest in attempt_folders(run)[-1:]:
        signs += [newest, *newest.iterdir()]
    times = []
    for path in signs:
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(0.0, now - max(times)) if times else None


def _attempts(run: Path) -> list[AttemptStatus]:
    found = []
    for folder in attempt_folders(run):
        value = read_json(folder / "exit.json")
        found.append(
            AttemptStatus(
                number=int(folder.name),
                reason=value.get("reason"),
                step=value.get("step"),
                exit_code=value.get("exit_code"),
            )
        )
    return found
