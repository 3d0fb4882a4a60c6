"""Made-up text with something to learn in it, and a packed corpus of it."""

from __future__ import annotations

import random
from pathlib import Path

from electra_dist.data.build import build_corpus
from electra_dist.data.build_options import BuildOptions, SourceSpec
from electra_dist.data.frozen import freeze
from electra_dist.data.packing import pack
from electra_dist.data.store import Corpus, Packing

SYLLABLES = ("ba", "de", "ki", "lo", "mu", "ra", "se", "to", "vi", "zu")


def text(num_documents: int, seed: int = 0) -> str:
    """Documents of sentences in which each word narrows down the next one."""
    rng = random.Random(seed)
    words = [
        a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES if rng.random() < 0.4
    ]
    followers = {word: rng.sample(words, 4) for word in words}
    documents = []
    for _ in range(num_documents):
        lines = []
        for _ in range(rng.randint(3, 12)):
            word = rng.choice(words[:40])
            sentence = [word]
            for _ in range(rng.randint(4, 18)):
                word = rng.choice(followers[word])
                sentence.append(word)
            lines.append(" ".join(sentence))
        documents.append("\n".join(lines))
    return "\n\n".join(documents) + "\n"


def corpus(folder: Path, *, length: int, num_documents: int = 200) -> Path:
    """A packed corpus with held-out documents and frozen corruption, in `folder`/corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "text.txt"
    source.write_text(text(num_documents), encoding="utf-8")
    out = folder / "corpus"
    spec = SourceSpec(inputs=(str(source),))
    build_corpus(BuildOptions(sources=(spec,), out=out, vocab_size=300, held_out_share=0.05))
    pack(out, length)
    opened = Corpus.open(out)
    freeze(opened, Packing.open(opened, length))
    return out
