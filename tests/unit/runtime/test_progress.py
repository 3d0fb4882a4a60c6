import io

import pytest

from electra_dist.runtime import progress
from electra_dist.runtime.progress import Progress, ProgressDisplay, rate_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the display sees: the test sets the one number in it."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_log_gets_a_line_every_half_minute(clock: list[float]) -> None:
    stream = io.StringIO()
    with ProgressDisplay(stream) as display:
        for second in range(0, 100, 10):
            clock[0] = float(second)
            display(
                Progress(
                    phase="encoding",
                    num_bytes=second * 10**6,
                    total_bytes=200 * 10**6,
                    num_tokens=second * 250_000,
                )
            )
    assert stream.getvalue().splitlines() == [
        "encoding: 30 of 200 MB (15%), 1.00 MB/s, 250,000 tokens/s, 0:02:50 left",
        "encoding: 60 of 200 MB (30%), 1.00 MB/s, 250,000 tokens/s, 0:02:20 left",
        "encoding: 90 of 200 MB (45%), 1.00 MB/s, 250,000 tokens/s, 0:01:50 left",
    ]


def test_a_terminal_gets_a_bar_and_what_is_left() -> None:
    stream = Terminal()
    with ProgressDisplay(stream) as display:
        display(Progress(phase="vocabulary", num_bytes=1000, total_bytes=None))
        display(Progress(phase="encoding", num_bytes=50, total_bytes=100))
    assert "encoding" in stream.getvalue()
    assert "50%" in stream.getvalue()


def test_what_an_earlier_attempt_did_is_no_part_of_the_rate() -> None:
    now = Progress(phase="x", num_bytes=90 * 10**6, total_bytes=10**8, found_bytes=80 * 10**6)
    assert rate_text(now, 10.0) == "1.00 MB/s, 0:00:10 left"
    assert rate_text(Progress(phase="x", num_bytes=5, total_bytes=9, found_bytes=5), 1.0) == (
        "starting"
    )
