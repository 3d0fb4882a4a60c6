"""Does what a run is to begin from fit it? Objective, shapes and vocabulary, each in a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from electra_dist.checkpoint.layout import run_folder_of
from electra_dist.config import files
from electra_dist.data.store import Corpus
from electra_dist.data.tokenize import read_vocab, tokenizer_sha256
from electra_dist.errors import UserError
from electra_dist.runtime.special_tokens import token_ids

Shapes = Mapping[str, tuple[int, ...]]

_WORD_TABLE = "embeddings.word.weight"
_REMEDIES = {
    _WORD_TABLE: "build the corpus with the source's tokenizer",
    "embeddings.position.weight": (
        "set --model.max_position_embeddings to the source's number: positions are learnt, and "
        "others have no values to begin with"
    ),
}


def objective_of(folder: Path, state: Mapping[str, Any]) -> str | None:
    """Name of a checkpoint's; None if it was moved out of its run, or imported without a config."""
    if state.get("config") is not None:
        return str(state["config"]["objective"]["name"])
    run = run_folder_of(folder)
    return files.read_json(run / "config.json").objective.name if run else None


def check_shapes(
    word: str,
    theirs: Shapes,
    ours: Shapes,
    objectives: tuple[str | None, str],
    *,
    must_be_all: bool,
) -> None:
    """Refuse a source of other parameters.

    Args:
        word: what the user typed.
        theirs: shapes of the source's parameters by name.
        ours: of this run's.
        objectives: the source's, if it says so, and this run's.
        must_be_all: the source may lack none.

    Raises:
        UserError: a parameter has another shape, or one side has it alone.
    """
    strange = sorted(theirs.keys() - ours.keys())
    lacking = sorted(ours.keys() - theirs.keys()) if must_be_all else []
    names = [*_REMEDIES, *sorted(theirs)]
    others = [n for n in names if n in theirs and n in ours and theirs[n] != ours[n]]
    has_remedy = bool(others) and others[0] in _REMEDIES
    if (
        (strange or lacking or others)
        and not has_remedy
        and objectives[0] not in (None, objectives[1])
    ):
        raise UserError(
            f"{word} is a model of objective {objectives[0]}, which has other towers than this "
            f"run's objective {objectives[1]}; set --objective.name {objectives[0]}, or begin from "
            f"a model of {objectives[1]}"
        )
    if others:
        name = others[0]
        remedy = _REMEDIES.get(name, "give the source's recipe or config")
        if name == _WORD_TABLE and theirs[name][0] == ours[name][0]:
            # As wide as the model, for one, in the export of a modern run.
            remedy = f"set --model.embedding_size {theirs[name][1]}, or begin from its run"
        raise UserError(
            f"{word} holds {name} of shape {list(theirs[name])}, this run's is "
            f"{list(ours[name])}; {remedy}"
        )
    if strange or lacking:
        which = f"holds {strange[0]}, which" if strange else f"lacks {lacking[0]}, which"
        has = "this run's model has not" if strange else "this run's model has"
        raise UserError(f"{word} {which} {has}; give the source's recipe or config")


def check_vocabulary(word: str, sha256: str | None, folder: Path, corpus: Corpus) -> None:
    """By the tokenizer's hash, where the source knows it, or else by the tokens and their ids.

    Args:
        word: what the user typed.
        sha256: of the source's tokenizer; None if it does not say.
        folder: where its tokenizer lies, if it brings one.
        corpus: of the run.

    Raises:
        UserError: it is another one.
    """
    if sha256 is not None and sha256 == corpus.manifest["tokenizer"]["sha256"]:
        return
    path = next((p for n in ("tokenizer.json", "vocab.txt") if (p := folder / n).is_file()), None)
    if path is not None:
        if tokenizer_sha256(path) == corpus.manifest["tokenizer"]["sha256"]:
            return
        if _ids(path) == _ids(corpus.tokenizer_path):
            return
    elif sha256 is None:
        return  # an older checkpoint: the number of tokens has been compared
    raise UserError(
        f"{word} was trained with another vocabulary than the corpus {corpus.folder}; "
        "build the corpus with the source's tokenizer (corpus build --tokenizer)"
    )


def _ids(path: Path) -> dict[str, int]:
    """Token -> id."""
    if path.suffix == ".txt":
        return read_vocab(path)
    return token_ids(json.loads(path.read_text(encoding="utf-8")))
