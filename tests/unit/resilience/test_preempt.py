import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product

import pytest

from electra_dist.resilience.preempt import StopSignals, after_signal

HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture
def installed() -> Iterator[StopSignals]:
    before = {number: signal.getsignal(number) for number in HANDLED}
    signals = StopSignals()
    signals.install()
    yield signals
    for number, handler in before.items():
        signal.signal(number, handler)


def test_without_a_signal_nothing_is_received(installed: StopSignals) -> None:
    assert installed.received is None


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_only_sets_a_flag(installed: StopSignals, number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    assert installed.received == number.name


def test_the_first_of_a_burst_is_remembered(installed: StopSignals) -> None:
    # Slurm sends USR1, then TERM. (Interrupts: below, in a process that may die of them.)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    assert installed.received == "SIGUSR1"


NAMES = ("SIGUSR1", "SIGTERM", "SIGINT")
GRACE = 30.0


@pytest.mark.parametrize("names", [n for k in (1, 2, 3, 4) for n in product(NAMES, repeat=k)])
@pytest.mark.parametrize("gap", [0.1, 6.0])
def test_every_sequence_of_signals(names: tuple[str, ...], gap: float) -> None:
    request = None
    for i, name in enumerate(names):
        request = after_signal(request, getattr(signal, name), i * gap, GRACE)
    assert request is not None
    assert request.cause == names[0]
    terms = [i * gap for i, name in enumerate(names) if name == "SIGTERM"]
    assert request.deadline == (terms[0] + GRACE if terms else math.inf)  # only ever shortened
    interrupts = [i * gap for i, name in enumerate(names) if name == "SIGINT"]
    assert request.leave_at_once == (bool(interrupts) and interrupts[-1] - interrupts[0] > 5.0)


def test_the_deadline_is_that_of_the_first_sigterm(installed: StopSignals) -> None:
    assert installed.deadline == math.inf
    os.kill(os.getpid(), signal.SIGUSR1)
    assert installed.deadline == math.inf
    os.kill(os.getpid(), signal.SIGTERM)
    first = installed.deadline
    assert 0 < first - time.monotonic() <= 30.0
    os.kill(os.getpid(), signal.SIGTERM)
    assert installed.deadline == first


PROGRAM = """
import os, signal, sys, time
from electra_dist.resilience import preempt
preempt.BURST_SECONDS = float(sys.argv[1])
signals = preempt.StopSignals()
signals.install()
for name in sys.argv[2:]:
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(0.05)
print("still here after", signals.received)
"""


def run(burst_seconds: float, *names: str) -> tuple[int, str]:
    command = [sys.executable, "-c", PROGRAM, str(burst_seconds), *names]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr == ""
    return ended.returncode, ended.stdout.strip()


@pytest.mark.parametrize(
    ("burst_seconds", "names", "code"),
    [
        (0.0, ("SIGINT", "SIGINT"), 1),  # a person who does not want to wait
        (30.0, ("SIGINT", "SIGINT"), 0),  # one key press, sent twice
        (30.0, ("SIGUSR1", "SIGTERM", "SIGINT"), 0),
        (0.0, ("SIGTERM", "SIGTERM", "SIGUSR1"), 0),  # a scheduler that says it again
        (0.0, ("SIGTERM", "SIGINT"), 0),  # a first interrupt, however late, is not a second one
        (0.0, ("SIGTERM", "SIGINT", "SIGINT"), 1),
    ],
)
def test_only_a_later_second_interrupt_leaves_at_once(
    burst_seconds: float, names: tuple[str, ...], code: int
) -> None:
    expected = "" if code else f"still here after {names[0]}"
    assert run(burst_seconds, *names) == (code, expected)
