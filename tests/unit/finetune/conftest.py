"""A pretrained folder of a few thousand weights, and labelled files that it can learn."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import ElectraConfig, ElectraForPreTraining

WORDS = ["good", "bad", "film", "plot", "song", "cast", "the", "a", "one", "two", "three", "four"]
FILLERS = ["film", "plot", "song", "cast", "the", "a"]


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ElectraForPreTraining as transformers saves it, 2 layers of 32, with a tokenizer."""
    folder = tmp_path_factory.mktemp("pretrained")
    vocabulary = {
        piece: index
        for index, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"cls_token": {"content": "[CLS]"}}))
    with torch.random.fork_rng():
        torch.manual_seed(99)  # not a seed of any test: an untrained encoder must differ
        config = ElectraConfig(
            vocab_size=len(vocabulary),
            embedding_size=16,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            initializer_range=0.2,  # at 0.02 so narrow a network hardly sees its input
        )
        ElectraForPreTraining(config).save_pretrained(folder)
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file of a test; gives its path."""

    def write_file(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8", newline="")
        return path

    return write_file


@pytest.fixture(scope="session")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.tsv and dev.tsv in SST-2's headerless layout; one word decides."""
    folder = tmp_path_factory.mktemp("sentiment")
    source = random.Random(0)
    for name, num_rows in (("train.tsv", 160), ("dev.tsv", 60)):
        lines = []
        for _ in range(num_rows):
            label = int(source.random() < 0.6)
            words = source.choices(FILLERS, k=source.randint(1, 6))
            words.insert(source.randint(0, len(words)), ["bad", "good"][label])
            lines.append(f"{' '.join(words)}\t{label}")
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
