from pathlib import Path

import pytest

from electra_dist.data import records, sources
from electra_dist.data.parts import SourceInput, total_bytes
from electra_dist.data.records import SourceOptions
from electra_dist.data.sampling import sample_sentences


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourceInput:
    """1000 numbered documents in four files, in pieces of about ten documents."""
    monkeypatch.setattr(records, "PIECE_BYTES", 200)
    for file in range(4):
        numbers = range(250 * file, 250 * (file + 1))
        (tmp_path / f"{file}.txt").write_text("".join(f"document {n:08d}\n\n" for n in numbers))
    files = sources.find_files([str(tmp_path)])
    return SourceInput(kind="text", options=SourceOptions(), files=files)


def taken(source: SourceInput, max_bytes: int) -> list[int]:
    sentences = sample_sentences([source], max_bytes, lambda _: None)
    return [int(sentence.split()[1]) for sentence in sentences]


def test_a_small_input_is_taken_whole(source: SourceInput) -> None:
    assert total_bytes([source]) == 19_000
    assert taken(source, 19_000) == list(range(1000))
    assert taken(source, 10**9) == list(range(1000))


@pytest.mark.parametrize("max_bytes", [1900, 9500])
def test_a_sample_is_bounded_and_even(source: SourceInput, max_bytes: int) -> None:
    numbers = taken(source, max_bytes)
    assert numbers == taken(source, max_bytes)
    assert max_bytes - 400 <= 19 * len(numbers) <= max_bytes + 400
    for quarter in range(4):
        in_quarter = sum(250 * quarter <= number < 250 * (quarter + 1) for number in numbers)
        assert in_quarter / len(numbers) == pytest.approx(0.25, abs=0.12)


def test_where_a_size_is_unknown_the_sample_is_the_beginning(
    source: SourceInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("electra_dist.data.sampling.total_bytes", lambda _: None)
    numbers = taken(source, 1900)
    assert numbers == list(range(len(numbers)))
    assert 100 <= len(numbers) <= 130


def test_what_was_taken_is_reported(source: SourceInput) -> None:
    seen: list[int] = []
    list(sample_sentences([source], 1000, seen.append))
    assert seen == sorted(seen)
    assert 1000 <= seen[-1] <= 1400
