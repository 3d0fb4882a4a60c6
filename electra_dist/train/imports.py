"""From others' formats to a checkpoint that `pretrain --init-from` and `checkpoint export` take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from electra_dist.checkpoint.foreign_deepspeed import ForeignState, read_deepspeed
from electra_dist.checkpoint.made import check_out, made_state, write_checkpoint, zero_moments
from electra_dist.checkpoint.shard import Piece
from electra_dist.config import changes
from electra_dist.config.schema import RunConfig
from electra_dist.data.corpora import open_corpora
from electra_dist.data.tokenize import load_tokenizer
from electra_dist.errors import UserError
from electra_dist.model import hub
from electra_dist.model.electra import JointElectra
from electra_dist.model.padding import stored_parameters

_WORD_TABLE = "embeddings.word.weight"


def import_hf(
    folder: Path, out: Path, *, generator: Path | None = None, config: RunConfig | None = None
) -> Path:
    """Write the weights of a Hugging Face ELECTRA folder as the new checkpoint `out`.

    Args:
        folder: ElectraForPreTraining, or a lone ElectraForMaskedLM (an `mlm` model).
        out: the checkpoint's folder.
        generator: the generator's folder; left out, `folder`/generator if that is there.
        config: sizes of what the folders lack, which its seed then fills; needed where there is no
            generator.

    Raises:
        UserError: there is no such model, it has other sizes than `config`, or no generator's size
            is known.
    """
    check_out(out)
    imported = hub.read(folder, generator)
    weights = imported.weights
    if config is None:
        if not imported.has_generator:
            raise UserError(
                f"{folder} comes without a generator; give its folder with --generator, or its "
                "size with --recipe or --config"
            )
        config = imported.config
    config = _of_vocabulary(config, weights[_WORD_TABLE].shape[0])
    model = JointElectra(config)
    parameters = stored_parameters(model)
    _check({n: tuple(v.shape) for n, v in weights.items()}, parameters, folder)
    fresh = sorted({".".join(name.split(".")[:2]) for name in parameters if name not in weights})

    def pieces() -> Iterator[Piece]:
        for name, initial in parameters.items():
            yield from zero_moments(name, weights.get(name, initial).float().numpy())

    origin = {
        "kind": "hf",
        "folder": str(folder.resolve()),
        "generator": str(generator.resolve()) if generator else None,
        "fresh": fresh,
    }
    state = made_state(
        step=0,
        origin=origin,
        has_moments=False,
        config=asdict(config),
        config_fingerprint=changes.fingerprint(config),
    )
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    return write_checkpoint(out, shapes, pieces(), state, _tokenizer(imported.tokenizer))


def import_deepspeed(folder: Path, out: Path, *, config: RunConfig | None = None) -> Path:
    """Write weights and moments of a checkpoint of DeepSpeed's as the new checkpoint `out`.

    Args:
        folder: what `save_checkpoint` or DeepSpeed's converter to universal folders has written,
            for our joint module.
        out: the checkpoint's folder.
        config: what the model is; with it `checkpoint export hf` works on the result too, with the
            tokenizer of `data.corpus`.

    Raises:
        UserError: the folder cannot be read, or holds another model.
    """
    check_out(out)
    foreign = read_deepspeed(folder)
    if _WORD_TABLE not in foreign.shapes:
        raise UserError(
            f"{foreign.folder} holds {next(iter(foreign.shapes))} and others, but not "
            f"{_WORD_TABLE}: it is no JointElectra; import it as a Hugging Face folder"
        )
    tokenizer = None
    if config is not None:
        if config.model.vocab_size is None and config.data.folders:
            config = _of_vocabulary(config, open_corpora(config.data)[0].vocab_size)
        config = _of_vocabulary(config, foreign.shapes[_WORD_TABLE][0])
        foreign = _without_padding(foreign, config)
        with torch.device("meta"):
            parameters = stored_parameters(JointElectra(config))
        _check(foreign.shapes, parameters, foreign.folder)
        lacking = sorted(parameters.keys() - foreign.shapes.keys())
        if lacking:
            raise UserError(f"{foreign.folder} lacks {lacking[0]}; give the config of its model")
        if config.data.folders:
            tokenizer = open_corpora(config.data)[0].tokenizer_path.read_bytes()
    state = made_state(
        step=foreign.step,
        origin={
            "kind": "deepspeed",
            "folder": str(foreign.folder.resolve()),
            "zero_stage": foreign.zero_stage,
            "num_ranks": foreign.num_ranks,
        },
        has_moments=True,
        config=asdict(config) if config else None,
        config_fingerprint=changes.fingerprint(config) if config else None,
    )
    return write_checkpoint(out, foreign.shapes, foreign.pieces(), state, tokenizer)


def _without_padding(foreign: ForeignState, config: RunConfig) -> ForeignState:
    """Word tables of the vocabulary's size, where DeepSpeed saved them as they lie in memory."""
    num_ids = config.model.vocab_size
    assert num_ids is not None
    shapes = {
        name: (num_ids, *shape[1:])
        if name.endswith("word.weight") and shape[0] == config.model.padded(num_ids)
        else shape
        for name, shape in foreign.shapes.items()
    }

    def fragments(name: str, kind: str) -> list[Tensor]:
        flat = torch.cat([piece.reshape(-1) for piece in foreign.fragments(name, kind)])
        return [flat[: math.prod(shapes[name])]]

    return replace(foreign, shapes=shapes, fragments=fragments)


def _of_vocabulary(config: RunConfig, vocab_size: int) -> RunConfig:
    if config.model.vocab_size is None:
        return replace(config, model=replace(config.model, vocab_size=vocab_size))
    return config


def _check(
    found: Mapping[str, tuple[int, ...]], parameters: Mapping[str, Tensor], folder: Path
) -> None:
    """Whether what the folder holds belongs to the model that the config describes."""
    for name, shape in found.items():
        wanted = tuple(parameters[name].shape) if name in parameters else None
        if shape != wanted:
            has = f"has shape {list(wanted)}" if wanted else "is not there"
            raise UserError(
                f"{folder} holds {name} of shape {list(shape)}, in the given config it {has}; "
                "give the recipe or config of that model"
            )


def _tokenizer(path: Path | None) -> bytes | None:
    """As a corpus keeps it; a tokenizer.json of others stays byte for byte."""
    if path is None:
        return None
    if path.suffix == ".json":
        return path.read_bytes()
    return load_tokenizer(path).to_str(pretty=True).encode()
