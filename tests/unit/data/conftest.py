"""A packed corpus of made-up sentences: many documents, several shards, held-out rows recorded."""

import random
from pathlib import Path

import pytest

from electra_dist.data.build import build_corpus
from electra_dist.data.build_options import BuildOptions, SourceSpec
from electra_dist.data.frozen import freeze
from electra_dist.data.packing import pack
from electra_dist.data.store import Corpus, Packing

LENGTH = 32


def write_documents(path: Path, num_documents: int, seed: int) -> Path:
    """Documents of 1 to 9 sentences over 120 words, the first words more often than the last.

    The third word is too long for WordPiece: an [UNK].
    """
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(1, 6))) for _ in range(120)]
    words[2] = "a" * 101
    weights = [1 / rank for rank in range(1, 121)]
    documents = [
        "\n".join(
            " ".join(rng.choices(words, weights, k=rng.randint(1, 12))) + "."
            for _ in range(rng.randint(1, 9))
        )
        for _ in range(num_documents)
    ]
    path.write_text("\n\n".join(documents))
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Packed at 32 tokens as `full` and `packed`, frozen at 0.15; tests only read it."""
    folder = tmp_path_factory.mktemp("made_up")
    text = write_documents(folder / "text.txt", 260, seed=1)
    build_corpus(
        BuildOptions(
            sources=(SourceSpec(inputs=(str(text),)),),
            out=folder / "corpus",
            vocab_size=110,
            held_out_share=0.2,
            shard_tokens=2000,
        )
    )
    opened = Corpus.open(folder / "corpus")
    for mode in ("full", "packed"):
        pack(folder / "corpus", LENGTH, mode)
        freeze(opened, Packing.open(opened, LENGTH, mode), 0.15)
    return opened


@pytest.fixture
def packing(corpus: Corpus) -> Packing:
    """The packing `full`, with what was recorded in it."""
    return Packing.open(corpus, LENGTH, "full")
