"""Made-up text with something to learn in it, and a packed corpus of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from electra_dist.data.build import build_corpus
from electra_dist.data.build_options import BuildOptions, SourceSpec
from electra_dist.data.frozen import freeze
from electra_dist.data.packing import pack
from electra_dist.data.store import Corpus, Packing

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
SYLLABLES = ("ba", "de", "ki", "lo", "mu", "ra", "se", "to", "vi", "zu")

SMALLEST = """
recipe = "tiny"
[model]
num_layers = 1
hidden_size = 32
embedding_size = 16
generator_num_layers = 1
generator_hidden_size = 16
[data]
corpus = "{corpus}"
sequence_length = 32
"""
"""Top of a config: a model whose step costs milliseconds, on `corpus` at rows of 32."""


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


def trained(kind: str, special: Sequence[str] = SPECIALS, extra: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer as others make it: "bpe" as GPT-2's and RoBERTa's, "unigram" as XLM-R's."""
    text = [
        "the cats and the hats sat on the mats",
        f"hello there, the other cats {special[4]} {special[3]}",
        *extra,
    ] * 30
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=90,
            special_tokens=list(special),
            unk_token=special[1],
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=special[1]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(text, trainer=trainer)
    return tokenizer
