import errno
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from electra_dist.data import arrays
from electra_dist.data.arrays import read_arrays
from electra_dist.data.store import write_arrays
from electra_dist.errors import UserError
from electra_dist.runtime.retry import Retry, may_pass, retrying

AT_ONCE = Retry(num_attempts=4, first_delay_seconds=0.0)


def failing(times: int, error: Exception) -> Callable[[], str]:
    """An action that fails so often before it gives its result."""
    left = [times]

    def action() -> str:
        if left[0]:
            left[0] -= 1
            raise error
        return "read"

    return action


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        TimeoutError("timed out"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        RuntimeError("what a client of an object store raises: SlowDown"),
    ],
    ids=repr,
)
def test_a_failure_that_may_pass_is_logged_and_tried_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert retrying("reading s3://a/b", failing(3, error), AT_ONCE) == "read"
    assert [f"attempt {n} of 4" in r.getMessage() for n, r in enumerate(caplog.records, 1)] == (
        [True] * 3
    )
    assert all("reading s3://a/b failed" in r.getMessage() for r in caplog.records)
    with pytest.raises(type(error)):
        retrying("reading", failing(4, error), AT_ONCE)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file"),
        FileNotFoundError("without a number, as fsspec raises it"),
        PermissionError("Forbidden"),
        OSError(errno.ENOSPC, "No space left on device"),
        ImportError("install s3fs"),
        UserError("the user's mistake"),
    ],
    ids=repr,
)
def test_what_waiting_does_not_mend_is_not_tried_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    assert not may_pass(error)
    with pytest.raises(type(error)):
        retrying("reading", failing(1, error), AT_ONCE)
    assert not caplog.records


def test_delays_double_and_differ_between_ranks() -> None:
    delays = [[Retry().delay_seconds(attempt) for attempt in range(1, 6)] for _ in range(20)]
    for attempt, column in enumerate(zip(*delays, strict=True)):
        assert len(set(column)) == 20
        assert all(0.5 * 2**attempt <= delay < 2**attempt for delay in column)


def test_mapping_a_local_file_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As NFS answers after a file was replaced.
    write_arrays(tmp_path / "a.safetensors", {"a": np.arange(3)})
    memmap, fails = np.memmap, failing(2, OSError(errno.ESTALE, "Stale file handle"))

    def stale_at_first(*args: object, **options: object) -> object:
        fails()
        return memmap(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(arrays.np, "memmap", stale_at_first)
    monkeypatch.setattr("electra_dist.runtime.retry.time.sleep", lambda _: None)
    assert read_arrays(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]
