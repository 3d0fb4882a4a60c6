import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest

from electra_dist.config.slurm_commands import Answer
from electra_dist.launch.requeue import Decision, Ending, Event, State, decide, fruitless, seen
from electra_dist.launch.slurm_job import (
    PATIENCE_SECONDS,
    RETRY_SECONDS,
    Job,
    end_job,
    ending_of,
)

STOPPED = Ending(reason="stopped", exit_code=75, checkpoint="step_00000007")
REASONS = {
    "finished": Ending(reason="finished", exit_code=0, checkpoint="step_00000040"),
    "asked": Ending(reason="asked", exit_code=0, checkpoint="step_00000007"),
    "stopped": STOPPED,
    "failed": Ending(reason="failed", exit_code=1, checkpoint="step_00000007"),
    "crashed": Ending(reason=None, exit_code=143, checkpoint="step_00000007"),
    "mistake": Ending(reason="failed", exit_code=2, checkpoint=None),
    "superseded": Ending(reason="superseded", exit_code=1, checkpoint="step_00000007"),
    "lacks nodes": Ending(reason=None, exit_code=1, checkpoint="step_7", needs_nodes=True),
}
WARNED, TOLD = Event.WARNED, Event.TOLD_TO_END


def after(*events: Event | Ending, **more: Any) -> Decision:
    state = State()
    for event in events:
        state = seen(state, event)
    decision = decide(state, more.pop("earlier", []), **{"max_fruitless": 3, **more})
    assert decision is not None
    return decision


def should_requeue(name: str, events: Sequence[Event]) -> bool:
    """Contracts, section 7, in one line each."""
    if TOLD in events or name in ("finished", "asked", "superseded", "mistake"):
        return False
    return name == "stopped" or WARNED in events or name == "lacks nodes"


@pytest.mark.parametrize("name", REASONS)
def test_every_order_of_events(name: str) -> None:
    """Up to two of each signal, before and after the ranks' end, in every order."""
    for num_warned, num_told in product(range(3), repeat=2):
        signals = [WARNED] * num_warned + [TOLD] * num_told
        orders = set(permutations([*signals, REASONS[name]]))
        decisions = {after(*order) for order in orders}
        assert len(decisions) == 1, "what is decided hangs on the order"
        (decision,) = decisions
        assert decision.requeue == should_requeue(name, signals), (name, signals)
        assert decision.why
        expected = {"finished": 0, "asked": 0, "mistake": 2, "stopped": 75}.get(name, 1)
        assert decision.exit_code == expected


def test_no_decision_while_the_ranks_run() -> None:
    for signals in product([WARNED, TOLD], repeat=3):
        state = State()
        for event in signals:
            state = seen(state, event)
            assert decide(state, [], max_fruitless=3) is None


@pytest.mark.parametrize("job_state", ["COMPLETING", "CANCELLED", "TIMEOUT", "PREEMPTED"])
def test_a_job_that_slurm_is_ending_is_not_requeued(job_state: str) -> None:
    """The ranks may be gone before the shell's own TERM has come."""
    for name, signals in product(REASONS, ([], [WARNED])):
        assert not after(*signals, REASONS[name], job_state=job_state).requeue


def test_k_ends_without_a_new_checkpoint_are_the_last() -> None:
    for k in range(1, 5):
        checkpoints: list[str | None] = ["step_3", "step_7"]
        for number in range(1, k + 1):
            decision = after(
                STOPPED, earlier=[*checkpoints[:-1], STOPPED.checkpoint], max_fruitless=k
            )
            checkpoints.append(STOPPED.checkpoint)
            decision = after(
                STOPPED, earlier=["step_3", *[STOPPED.checkpoint] * number], max_fruitless=k
            )
            assert decision.requeue == (number < k)
        assert "no progress" in decision.why
        assert "step_00000007" in decision.why
        progress = replace(STOPPED, checkpoint="step_00000008")
        assert after(progress, earlier=[STOPPED.checkpoint] * 9, max_fruitless=k).requeue


def test_fruitless_counts_the_last_ends_only() -> None:
    assert fruitless([]) == 0
    assert fruitless([None]) == 1
    assert fruitless(["a"]) == 0
    assert fruitless([None, None, "a", "a", "a"]) == 2
    assert fruitless([None, None, "a", "a", "b"]) == 0


def test_requeueing_can_be_switched_off() -> None:
    decision = after(WARNED, STOPPED, max_fruitless=0)
    assert (decision.requeue, decision.exit_code) == (False, 75)
    assert "resumes" in decision.why


# ------------------------------------------------------------------------------ what it asks Slurm

JOB = Job(job_id="17", restart_count=0)


class Slurm:
    """Answers in a given order; the last one stays."""

    def __init__(self, states: Sequence[str | None], requeue: Sequence[Answer]) -> None:
        self.states, self.requeue = list(states), list(requeue)
        self.asked: list[str] = []

    def __call__(self, words: Sequence[str]) -> Answer:
        self.asked.append(words[1])
        if words[1] == "requeue":
            return self.requeue.pop(0) if len(self.requeue) > 1 else self.requeue[0]
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if state is None:
            return Answer(code=1, words="Unable to contact slurm controller")
        return Answer(code=0, words=f"JobId=17 JobState={state} Reason=None")


DONE = Answer(code=0, words="")


def ended(tmp_path: Path, slurm: Slurm, ending: Ending = STOPPED, **more: Any) -> Decision:
    words = {"signals": ["USR1"], "max_fruitless": 3, **more}
    return end_job(
        tmp_path, words.pop("job", JOB), ending, ask=slurm, sleep=lambda _: None, **words
    )


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "requeue.jsonl").read_text().splitlines()]


def test_it_requeues_and_writes_it_down(tmp_path: Path) -> None:
    slurm = Slurm(["RUNNING"], [DONE])
    assert ended(tmp_path, slurm).requeue
    assert slurm.asked == ["show", "requeue"]
    (line,) = lines(tmp_path)
    assert (line["job"], line["action"], line["signals"]) == ("17", "requeue", ["USR1"])
    assert line["checkpoint"] == "step_00000007"


def test_it_waits_for_a_slurmctld_that_restarts(tmp_path: Path) -> None:
    slurm = Slurm([None, None, "RUNNING"], [DONE])
    assert ended(tmp_path, slurm).requeue
    assert slurm.asked == ["show", "show", "show", "requeue"]
    assert len(lines(tmp_path)) == 1


def test_a_job_cancelled_while_slurmctld_was_away_stays_cancelled(tmp_path: Path) -> None:
    slurm = Slurm([None, "COMPLETING"], [DONE])
    assert not ended(tmp_path, slurm).requeue
    assert "requeue" not in slurm.asked


def test_it_gives_up_on_a_slurmctld_that_stays_away(tmp_path: Path) -> None:
    slurm = Slurm([None], [DONE])
    decision = ended(tmp_path, slurm)
    assert (decision.requeue, decision.exit_code) == (False, 75)
    assert "does not answer" in decision.why
    assert len(slurm.asked) == PATIENCE_SECONDS / RETRY_SECONDS + 1
    assert [line["action"] for line in lines(tmp_path)] == ["requeue", "leave"]


def test_a_site_that_forbids_requeueing_is_named(tmp_path: Path) -> None:
    answer = Answer(code=1, words="Job has requeue disabled for job 17")
    decision = ended(tmp_path, Slurm(["RUNNING"], [answer]))
    assert "requeue disabled" in decision.why.lower()


def test_fruitless_ends_are_counted_within_one_job(tmp_path: Path) -> None:
    """Started anew by its user, a run has all its tries again."""

    def requeues(job_id: str) -> int:
        for number in range(9):
            job = Job(job_id=job_id, restart_count=number)
            if not ended(tmp_path, Slurm(["RUNNING"], [DONE]), job=job).requeue:
                return number
        raise AssertionError("it never ends")

    assert requeues("17") == 3  # the first end of all has a new checkpoint
    assert requeues("18") == 2


def test_reading_the_run_folder(tmp_path: Path) -> None:
    assert ending_of(tmp_path, 0, 2) == Ending(reason=None, exit_code=2, checkpoint=None)
    for number, reason in ((1, "stopped"), (2, None), (3, "failed")):
        folder = tmp_path / "attempts" / f"{number:04d}"
        folder.mkdir(parents=True)
        if reason:
            value = {"reason": reason, "exit_code": {"stopped": 75, "failed": 1}[reason]}
            (folder / "exit.json").write_text(json.dumps(value))
    checkpoint = tmp_path / "checkpoints" / "step_00000005"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").touch()
    newest = Ending(reason="failed", exit_code=1, checkpoint="step_00000005")
    assert ending_of(tmp_path, 0, 143) == newest
    # Attempts of earlier jobs say nothing about this one.
    assert ending_of(tmp_path, 3, 143) == replace(newest, reason=None, exit_code=143)
    line = {"attempt": 3, "action": "stop", "needs_nodes": True, "why": "too few"}
    (tmp_path / "supervisor.jsonl").write_text(json.dumps(line) + "\n")
    assert ending_of(tmp_path, 2, 1) == replace(newest, needs_nodes=True, supervisor_said="too few")
    assert not ending_of(tmp_path, 3, 1).needs_nodes


def test_a_run_that_another_job_has_taken_over(tmp_path: Path) -> None:
    for number, reason in ((1, "superseded"), (2, None)):
        folder = tmp_path / "attempts" / f"{number:04d}"
        folder.mkdir(parents=True)
        if reason:
            (folder / "exit.json").write_text(json.dumps({"reason": reason, "exit_code": 1}))
    assert not ended(tmp_path, Slurm(["RUNNING"], [DONE]), ending_of(tmp_path, 0, 1)).requeue
