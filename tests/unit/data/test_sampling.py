import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from electra_dist.data import records, sampling
from electra_dist.data.sampling import sample_documents
from electra_dist.data.vocab import text_input


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PIECE_BYTES", 1000)


def documents(start: int, stop: int) -> list[str]:
    return [f"document {i:05d} says it twice, {i:05d}" for i in range(start, stop)]


def write(path: Path, texts: list[str], kind: str = "text") -> Path:
    if kind == "text":
        data = "\n\n".join(texts)
    else:
        data = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.write(data)
    return path


def sample(path: Path, max_bytes: int, kind: str = "text") -> list[str]:
    found = list(sample_documents([text_input([str(path)], kind)], max_bytes))
    assert all(len(document.sentences) == 1 for document in found)
    return [document.sentences[0] for document in found]


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_small_input_is_taken_whole(tmp_path: Path, kind: str) -> None:
    texts = documents(0, 200)
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(4):
        write(folder / f"{i}.txt{'.gz' * (i % 2)}", texts[i * 50 : i * 50 + 50], kind)
    assert sample(folder, 1 << 20, kind) == texts


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_large_file_is_sampled_from_end_to_end_with_whole_documents(
    tmp_path: Path, kind: str
) -> None:
    texts = documents(0, 5000)
    path = write(tmp_path / "a.txt", texts, kind)
    found = sample(path, 10_000, kind)
    assert found == sample(path, 10_000, kind)
    assert set(found) <= set(texts)
    assert 6_000 < sum(map(len, found)) <= 10_000
    tenths = {int(text.split()[1]) // 500 for text in found}
    assert tenths == set(range(10))


def test_work_does_not_grow_with_the_input(tmp_path: Path) -> None:
    read: list[int] = []

    def counted(path: Path) -> int:
        read.clear()
        list(sample_documents([text_input([str(path)])], 5000, read.append))
        return read[-1]

    sizes = [counted(write(tmp_path / f"{n}.txt", documents(0, n))) for n in (2000, 20_000)]
    assert max(sizes) <= 5000


def test_compressed_files_give_their_beginnings_each_its_share(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(40):
        write(folder / f"{i:02d}.txt.gz", documents(i * 1000, i * 1000 + 500))
    found = sample(folder, 10_000)
    files = [int(text.split()[1]) // 1000 for text in found]
    assert len(set(files)) == 10
    assert max(files) >= 35
    assert len(found) < 1000


def test_documents_longer_than_a_window_give_their_whole_lines_or_words(tmp_path: Path) -> None:
    lines = documents(0, 2000)
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    one = text_input([str(tmp_path / "lines.txt")])
    found = [s for d in sample_documents([one], 5000) for s in d.sentences]
    assert len(found) > 50
    assert set(found) <= set(lines)
    (tmp_path / "words.txt").write_text(" ".join(f"wörd{i}" for i in range(5000)))
    one = text_input([str(tmp_path / "words.txt")])
    found = [w for d in sample_documents([one], 5000) for s in d.sentences for w in s.split()]
    assert len(found) > 300
    assert set(found) <= {f"wörd{i}" for i in range(5000)}


def test_unknown_sizes_give_each_file_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i, number in enumerate((500, 5000)):
        write(folder / f"{i}.txt", documents(i * 10_000, i * 10_000 + number))
    known = text_input([str(folder)])
    unknown = replace(known, files=[replace(f, num_bytes=None) for f in known.files])
    assert sampling.total_bytes([unknown]) is None
    found = [d.sentences[0] for d in sample_documents([unknown], 4000)]
    first = sum(int(text.split()[1]) < 10_000 for text in found)
    assert abs(first - len(found) / 2) < 20
