"""Which token of a vocabulary is the mask, which the padding: by name, BERT's or RoBERTa's."""

from collections.abc import Mapping
from typing import Any

NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
"""Role -> its names; where a vocabulary holds both, the first counts."""


def special_tokens(tokenizer: Mapping[str, Any]) -> dict[str, str]:
    """Role -> name in that vocabulary, for the roles that it holds.

    `tokenizer` is the content of a tokenizer.json. The unknown token is what its model gives for
    what it cannot spell, whatever its name; only a model without one is looked through for a name.
    """
    ids = token_ids(tokenizer)
    found = {
        role: next(name for name in names if name in ids)
        for role, names in NAMES.items()
        if any(name in ids for name in names)
    }
    unknown = _unknown_token(tokenizer["model"])
    if unknown in ids:
        found["unk"] = unknown
    return found


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of the content of a tokenizer.json, added tokens included."""
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: pairs of piece and score
        ids = {piece: id_ for id_, (piece, _) in enumerate(vocab)}
    else:
        ids = dict(vocab)
    return ids | {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}


def _unknown_token(model: Mapping[str, Any]) -> str | None:
    if isinstance(model["vocab"], list):
        unk_id = model.get("unk_id")
        return None if unk_id is None else str(model["vocab"][unk_id][0])
    return model.get("unk_token")
