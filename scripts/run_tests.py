"""`make test` and `make test-full`: every suite in turn, then one table, then one line of totals.

    python scripts/run_tests.py [--full] [SUITE ...] [-- PYTEST_ARGUMENT ...]

A suite is a folder of tests/. Without --full, tests marked `slow` are left out, the table says
which suite took longer than its budget (a slow machine is no failure), and a suite that takes
HARD_LIMIT times its budget is stopped and counted as failed: a hang must not eat the time of the
suites after it. REQUIRE=slurm,mpi,ssh turns what this machine lacks into a failure.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from capabilities import CAPABILITIES, required

BUDGET_SECONDS = {"unit": 60, "distributed": 360, "cluster": 360, "chaos": 180}
"""Seconds on 2 cores: together under 16 minutes."""
HARD_LIMIT = 8
"""Times the budget after which a suite is stopped."""
SIDE_BY_SIDE = {"unit": ("--numprocesses=logical", "--maxprocesses=8")}
"""Suites whose tests take one core each; the others start ranks of their own."""
NO_TESTS = 5
"""pytest's exit code for a folder in which it found no test."""
RESULTS = Path("build/test-results")


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """What one suite came to."""

    name: str
    num_passed: int = 0
    num_failed: int = 0
    num_skipped: int = 0
    seconds: float = 0.0
    note: str = ""


def count(report: Path) -> tuple[int, int, int]:
    """Passed, failed (errors too) and skipped tests of a JUnit report; 0 where there is none."""
    if not report.is_file():
        return 0, 0, 0
    passed = failed = skipped = 0
    for case in ET.parse(report).getroot().iter("testcase"):
        tags = {child.tag for child in case}
        if tags & {"failure", "error"}:
            failed += 1
        elif "skipped" in tags:
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def run_within(command: list[str], limit_seconds: float | None) -> int | None:
    """The exit code, or None where the command and all it started were stopped at the limit."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(
            process.pid, signal.SIGINT
        )  # pytest then says where it stood and writes its report
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_suite(name: str, *, full: bool, pytest_arguments: list[str]) -> SuiteResult:
    """Run one suite, its output shown as it comes."""
    folder, report = Path("tests") / name, RESULTS / f"{name}.xml"
    if not any(folder.rglob("test_*.py")):
        return SuiteResult(name=name, note="no tests yet")
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    print(f"\n=== {name} ===", flush=True)
    command = [sys.executable, "-m", "pytest", str(folder), f"--junitxml={report}"]
    command += ["-m", "slow or not slow" if full else "not slow"]
    command += [*SIDE_BY_SIDE.get(name, ()), *pytest_arguments]
    started = time.monotonic()
    code = run_within(command, None if full else HARD_LIMIT * BUDGET_SECONDS[name])
    seconds = time.monotonic() - started

    passed, failed, skipped = count(report)
    note = ""
    if code is None:
        # The report holds the test that was interrupted as if it had passed.
        passed, failed = max(0, passed - 1), failed + 1
        note = f"stopped after {HARD_LIMIT} times its budget"
    elif code == NO_TESTS:
        note = "no tests selected"
    elif code != 0 and failed == 0:
        failed, note = 1, f"pytest ended with code {code}"
    elif not full and seconds > BUDGET_SECONDS[name]:
        note = "over budget"
    return SuiteResult(
        name=name,
        num_passed=passed,
        num_failed=failed,
        num_skipped=skipped,
        seconds=seconds,
        note=note,
    )


def print_table(results: list[SuiteResult], *, full: bool) -> None:
    """One line a suite."""
    print(
        f"\n{'suite':<12} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8} {'budget':>7}"
    )
    for result in results:
        budget = "-" if full else str(BUDGET_SECONDS[result.name])
        print(
            f"{result.name:<12} {result.num_passed:>7} {result.num_failed:>7} "
            f"{result.num_skipped:>8} {result.seconds:>8.1f} {budget:>7}  {result.note}".rstrip()
        )


def report_left_out() -> list[str]:
    """Print what this machine cannot run and how to enable it; return those that REQUIRE names."""
    missing = [capability for capability in CAPABILITIES.values() if not capability.is_there()]
    if missing:
        print("\nLeft out on this machine:")
    for capability in missing:
        print(f"  needs_{capability.name}: {capability.what}. To enable: {capability.remedy}")
    return [capability.name for capability in missing if capability.name in required()]


def main() -> int:
    """Run the suites; 0 where nothing failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"of {', '.join(BUDGET_SECONDS)}"
    )
    parser.add_argument("--full", action="store_true", help="tests marked slow too, no limit")
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    unknown = sorted(set(options.suites) - BUDGET_SECONDS.keys())
    if unknown:
        parser.error(f"no suite {unknown[0]!r}; suites are: {', '.join(BUDGET_SECONDS)}")
    try:
        required()
    except ValueError as error:
        parser.error(str(error))

    results = [
        run_suite(name, full=options.full, pytest_arguments=arguments[end + 1 :])
        for name in options.suites or BUDGET_SECONDS
    ]
    print_table(results, full=options.full)
    lacking = report_left_out()
    for name in lacking:
        print(f"REQUIRE={name}, but this machine lacks it: counted as a failure")

    num_failed = sum(result.num_failed for result in results) + len(lacking)
    num_passed = sum(result.num_passed for result in results)
    num_skipped = sum(result.num_skipped for result in results)
    print(f"\n{num_passed} passed, {num_failed} failed, {num_skipped} skipped", flush=True)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
