"""Text to batches: word pieces, longest-first truncation, padding to the longest row."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from electra_dist.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
"""Files of a Hugging Face folder that describe the tokenizer; only the first must be there."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One encoded example: [CLS] A [SEP], or [CLS] A [SEP] B [SEP]."""

    ids: list[int]
    """Token ids, specials included, not padded."""

    first_length: int
    """Number of tokens of type 0: [CLS], A and the first [SEP]."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Padded rows; each tensor is int64 of shape (batch, longest row)."""

    input_ids: Tensor
    attention_mask: Tensor
    """1 for real tokens, 0 for padding."""

    token_type_ids: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return Batch(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            token_type_ids=self.token_type_ids.to(device),
        )


class TextEncoder:
    """The model's own tokenizer (casing included) and the layout of its rows."""

    def __init__(self, folder: Path, max_length: int) -> None:
        """Read the tokenizer of a Hugging Face folder.

        Raises:
            UserError: no usable tokenizer.json, or a special token that its vocabulary lacks.
        """
        self.max_length = max_length
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                f"{folder}: there is no tokenizer.json; give a folder exported with its tokenizer"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises a bare Exception
            raise UserError(f"{path}: not a tokenizer ({error}); export the model again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size = self._tokenizer.get_vocab_size()
        names = _special_tokens(folder / "tokenizer_config.json")
        self.cls_id, self.sep_id, self.pad_id = (self._special_id(path, name) for name in names)

    def rows(self, texts: Sequence[str], texts_b: Sequence[str] | None = None) -> list[Row]:
        """Encode texts, or pairs of texts, truncated to `max_length` tokens with the specials."""
        first = self._pieces(texts)
        if texts_b is None:
            return [self._row(pieces[: self.max_length - 2]) for pieces in first]
        return [
            self._row(*self._truncated(a, b))
            for a, b in zip(first, self._pieces(texts_b), strict=True)
        ]

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Pad rows on the right to the longest of them."""
        length = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = torch.tensor(row.ids)
            mask[index, : len(row.ids)] = 1
            types[index, row.first_length : len(row.ids)] = 1
        return Batch(input_ids=ids, attention_mask=mask, token_type_ids=types)

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _row(self, a: list[int], b: list[int] | None = None) -> Row:
        first = [self.cls_id, *a, self.sep_id]
        second = [] if b is None else [*b, self.sep_id]
        return Row(ids=first + second, first_length=len(first))

    def _truncated(self, a: list[int], b: list[int]) -> tuple[list[int], list[int]]:
        keep_a, keep_b = longest_first(len(a), len(b), self.max_length - 3)
        return a[:keep_a], b[:keep_b]

    def _special_id(self, path: Path, name: str) -> int:
        found = self._tokenizer.token_to_id(name)
        if found is None:
            raise UserError(
                f"{path}: its vocabulary has no {name}; use the tokenizer of the pretrained model"
            )
        return int(found)


def longest_first(length_a: int, length_b: int, budget: int) -> tuple[int, int]:
    """Lengths after dropping tokens from the longer text, from B on a tie, until both fit."""
    if length_a + length_b <= budget:
        return length_a, length_b
    keep_a = min(length_a, max(budget - length_b, (budget + 1) // 2))
    return keep_a, budget - keep_a


def _special_tokens(path: Path) -> tuple[str, str, str]:
    """Names of the CLS, SEP and PAD tokens; BERT's where the file says nothing."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); export the model again") from error

    def name(key: str, default: str) -> str:
        value = settings.get(key) or default
        return str(value["content"] if isinstance(value, dict) else value)

    return name("cls_token", "[CLS]"), name("sep_token", "[SEP]"), name("pad_token", "[PAD]")
