"""A rank of the real guard with a sleeping step and a sleeping save.

    ELECTRA_DIST_RANK_COMMAND="python limit_rank.py" sbatch slurm/pretrain.sbatch CONFIG RUN

What trains is left out; what decides when to leave is the product's: signals, the end of the job as
Slurm tells it, the pace, the margin, the decision, exit.json. LIMIT_STEP and LIMIT_SAVE are the
seconds of a step and of a save. RUN/saves.jsonl holds a line at each save's begin and end, and a
line at each step's end: a save that was begun and not ended was killed.
"""

import json
import os
import sys
import time
from pathlib import Path

from electra_dist.config import files, variables
from electra_dist.resilience.deadline import Ahead
from electra_dist.resilience.guard import ExitReason, Signs, decide
from electra_dist.resilience.preempt import StopSignals
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.job_end import job_end
from electra_dist.runtime.times import TimeBook, launched_at
from electra_dist.train.clock import RunClock


def main(config_path: str, run_folder: Path) -> int:
    """Sleep to the last step, or to the last safe one."""
    config = files.load(config_path)
    signals = StopSignals(config.resilience.term_grace_seconds)
    signals.install()
    attempt = Attempt.claim(run_folder)
    launched = launched_at(os.environ)
    attempt.write_start(launched, os.environ.get(variables.LAUNCH), 1)
    if not (run_folder / "config.json").exists():
        (run_folder / "config.json").write_text(files.to_json(config))
    end = job_end(os.environ)
    assert end is not None, "Slurm did not say when the job ends"
    step_seconds, save_seconds = (float(os.environ[f"LIMIT_{name}"]) for name in ("STEP", "SAVE"))
    clock = RunClock(
        TimeBook(launched, attempt),
        signals,
        end=time.monotonic() + end - time.time(),
        margin_seconds=config.resilience.end_margin_seconds,
        guessed_save_seconds=save_seconds * 1.5,
        rows_a_step=1,
        rows_an_evaluation=0,
    )
    names = [path.name for path in run_folder.glob("checkpoints/step_*")]
    step = max((int(name.removeprefix("step_")) for name in names), default=0)

    def note(event: str) -> None:
        line = {"event": event, "step": step, "time": time.time(), "end": end}
        with (run_folder / "saves.jsonl").open("a") as file:
            file.write(json.dumps({**line, "attempt": attempt.number}) + "\n")

    note("start")
    stop: ExitReason | None = None
    while stop is None:
        sleep(step_seconds)
        clock.stepped(data_wait_seconds=0.0, step_seconds=step_seconds)
        step += 1
        note("step")
        due = step % config.checkpoint.every_steps == 0
        time_signs = clock.signs(Ahead(evaluates_next=False, num_saves=int(due)))
        decision = decide(
            config,
            Signs(
                step=step,
                loss=1.0,
                grad_norm=1.0,
                stop_signalled=signals.received is not None,
                stop_asked=(run_folder / "STOP").exists(),
                writer_busy=False,
                save_overdue=False,
                time_is_up=time_signs.is_up,
                hurry=time_signs.hurry,
            ),
        )
        stop = decision.stop
        if decision.save:
            note("save begins")
            sleep(save_seconds)
            folder = run_folder / "checkpoints" / f"step_{step:08d}"
            folder.mkdir(parents=True)
            (folder / "manifest.json").touch()
            note("save ends")
            clock.saved([save_seconds])
    note(f"leaves: {stop.value}, {signals.received}")
    newest = max(path.name for path in run_folder.glob("checkpoints/step_*"))
    attempt.write_exit(reason=stop.value, step=step, checkpoint=newest, exit_code=stop.exit_code)
    return stop.exit_code


def sleep(seconds: float) -> None:
    """To the end, whatever signals come in between."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(left)


if __name__ == "__main__":
    # pretrain CONFIG --out RUN
    sys.exit(main(sys.argv[2], Path(sys.argv[4])))
