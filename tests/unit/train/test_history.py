import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_dist.data.order import skipping
from electra_dist.errors import UserError
from electra_dist.train.history import History, LedgerProblem, read_history
from electra_dist.train.ledger import chain

G = 8
Records = list[dict[str, Any]]


def resume(attempt: int, step: int, *skipped: tuple[int, int]) -> dict[str, Any]:
    intervals = [list(one) for one in skipped]
    return {
        "attempt": attempt,
        "kind": "resume",
        "step": step,
        "position": step * G,
        "skipped": intervals,
    }


def steps(attempt: int, first: int, last: int) -> Records:
    return [
        {
            "attempt": attempt,
            "kind": "step",
            "step": step,
            "position": (step - 1) * G,
            "samples": G,
            "checksum": f"{step:016x}",
        }
        for step in range(first, last + 1)
    ]


def chained(records: Records) -> list[str]:
    last, lines = "", []
    for record in records:
        plain = {name: value for name, value in record.items() if name != "chain"}
        last = chain(last, plain)
        lines.append(json.dumps({**plain, "chain": last}))
    return lines


def read(folder: Path, lines: list[str], born_with: tuple[tuple[int, int], ...] = ()) -> History:
    path = folder / "ledger.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return read_history(path, G, born_with)


def a_run() -> Records:
    """Stopped at 3; resumed at 2; step 4 rolled back over twice, with 8 positions skipped."""
    skipped = (24, 32)
    return [
        resume(1, 0),
        *steps(1, 1, 3),
        resume(2, 2),
        *steps(2, 3, 4),
        resume(2, 3, skipped),
        *steps(2, 4, 4),
        resume(3, 3, skipped),
        *steps(3, 4, 6),
    ]


def test_what_counts_is_what_was_done_last_and_all_repeats_are_declared(tmp_path: Path) -> None:
    history = read(tmp_path, chained(a_run()))
    assert [step.line for step in history.steps] == [2, 3, 6, 11, 12, 13]
    assert [step.checksum for step in history.steps] == [1, 2, 3, 4, 5, 6]
    assert [step.skips for step in history.steps] == [()] * 3 + [((24, 32),)] * 3
    assert {update: [s.line for s in records] for update, records in history.repeated.items()} == {
        2: [4],
        3: [7, 9],
    }
    assert history.resumes == [(1, 0), (5, 2), (8, 3), (10, 3)]
    assert (history.position, history.attempt, history.num_recorded) == (48, 3, 6)
    assert [step.line for step in history.records(3)] == [7, 9, 11]


def test_steps_that_were_rolled_back_and_not_done_again_are_recorded_too(tmp_path: Path) -> None:
    history = read(tmp_path, chained([*a_run(), resume(4, 1)]))
    assert (len(history.steps), history.num_recorded) == (1, 6)
    assert [step.line for step in history.records(5)] == [13]


def test_a_line_cut_off_by_a_crash_is_no_record(tmp_path: Path) -> None:
    lines = chained(a_run())
    lines.insert(4, lines[4][:40])
    lines.append(lines[-1][:-7])
    history = read(tmp_path, lines)
    assert len(history.steps) == 6
    assert history.half_lines == 2


def test_old_ledgers_whose_resumes_name_no_skips_have_those_of_the_config(tmp_path: Path) -> None:
    records = [resume(1, 0), *steps(1, 1, 2)]
    del records[0]["skipped"]
    assert read(tmp_path, chained(records), ((3, 5),)).skips == ((3, 5),)


def change(line: int, **values: Any) -> Callable[[Records], Records]:
    def doctor(records: Records) -> Records:
        records[line - 1] = records[line - 1] | values
        return records

    return doctor


def without(*lines: int) -> Callable[[Records], Records]:
    return lambda records: [r for n, r in enumerate(records, start=1) if n not in lines]


DOCTORED = [
    (change(3, position=9), "line 3: step 2 used 8 samples from position 9 on, but step 2"),
    (change(3, samples=16), "line 3: step 2 used 16 samples from position 8 on"),
    (change(3, step=5), "line 3: step 5 used"),
    (change(3, checksum="none"), "line 3: is no record of a ledger"),
    (change(3, kind="note"), "line 3: kind 'note' is unknown"),
    (change(6, attempt=1), "line 6: attempt 1 has no resume record before its steps"),
    (change(5, attempt=0), "line 5: attempt 0 comes after attempt 1"),
    (change(5, step=5, position=40), "line 5: goes on from step 5, but only 3 steps"),
    (change(5, position=17), "line 5: step 2 ends at position 16, not at 17"),
    (change(8, skipped=[[3, 9]]), "line 8: skips other positions before step 3 than the steps"),
    (change(8, skipped=7), "line 8: is no record of a ledger"),
    (change(1, skipped=[[3, 9]]), "line 1: skips more than data.skips of the run says"),
    (without(1), "line 1: the ledger starts with a step"),
    (without(2), "line 2: step 2 used 8 samples from position 8 on, but step 1"),
    (without(5), "line 5: attempt 2 has no resume record before its steps"),
    (without(8), "line 8: step 4 used 8 samples from position 24 on, but step 5"),
    (without(11), "line 11: step 5 used"),
    (lambda records: [*records[:3], records[2], *records[3:]], "line 4: step 2 used"),
    (lambda records: [records[0], records[2], records[1]], "line 2: step 2 used"),
]


@pytest.mark.parametrize(("doctor", "words"), DOCTORED)
def test_a_forger_who_rebuilds_the_chain_is_found_by_what_cannot_be(
    tmp_path: Path, doctor: Callable[[Records], Records], words: str
) -> None:
    with pytest.raises(LedgerProblem) as caught:
        read(tmp_path, chained(doctor(a_run())))
    assert words in str(caught.value)


def test_a_forger_who_does_not_is_found_by_the_chain(tmp_path: Path) -> None:
    whole = chained(a_run())
    for doctor, _ in DOCTORED:
        lines = [json.dumps(r) for r in doctor([json.loads(line) for line in whole])]
        with pytest.raises(LedgerProblem):
            read(tmp_path, lines)
    lines = [*whole]
    lines[4] = lines[4].replace("step", "stop")
    with pytest.raises(LedgerProblem, match="line 5: its hash does not follow"):
        read(tmp_path, lines)


def test_a_run_must_skip_what_its_config_says(tmp_path: Path) -> None:
    records = [resume(1, 0, (3, 5)), *steps(1, 1, 2), resume(2, 0), *steps(2, 1, 1)]
    with pytest.raises(LedgerProblem, match=r"line 4: does not skip what data\.skips"):
        read(tmp_path, chained(records), ((3, 5),))


def test_no_ledger_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ledger\.jsonl does not exist"):
        read_history(tmp_path / "ledger.jsonl", G, ())


@given(seed=st.integers(0, 10**6))
@settings(max_examples=60)
def test_any_life_of_a_run_is_read_and_any_lost_or_doubled_record_found(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Random kills (fewer steps are in the checkpoint than in the ledger) and roll-backs."""
    rng = random.Random(seed)
    records: Records = [resume(1, 0)]
    done, attempt, skips = 0, 1, ()
    for _ in range(rng.randint(0, 6)):
        more = rng.randint(1, 4)
        records += steps(attempt, done + 1, done + more)
        done = rng.randint(max(0, done - 2), done + more)
        if rng.random() < 0.5:
            attempt += 1
        else:
            skips = skipping(skips, done * G + 3, done * G + 12)
        # A later roll-back may go behind an earlier skip: it stays where it was.
        records.append(resume(attempt, done, *skips))
    folder = tmp_path_factory.mktemp("run")
    history = read(folder, chained(records))
    assert len(history.steps) == done
    assert len(history.resumes) == sum(record["kind"] == "resume" for record in records)

    numbers = [n for n, record in enumerate(records) if record["kind"] == "step"]
    for number in numbers:
        doubled = [*records[: number + 1], *records[number:]]
        with pytest.raises(LedgerProblem):
            read(folder, chained(doubled))
        if number + 1 in numbers:
            with pytest.raises(LedgerProblem):
                read(folder, chained([*records[:number], *records[number + 1 :]]))
