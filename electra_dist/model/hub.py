"""Hugging Face format, both ways: ElectraForPreTraining, ElectraForMaskedLM and plain ElectraModel.

    FOLDER/            ElectraForPreTraining (trained with mlm: ElectraForMaskedLM) + tokenizer
    FOLDER/generator/  ElectraForMaskedLM of the generator + tokenizer

Differences between our names and theirs that are no renaming: query, key and value are one matrix
here; gradient-disentangled tables are merged; what towers share stands in both folders. How they
share it, where it is not ELECTRA's way, stands in the generator's config.json under `electra_dist`.
Electric's two causal towers have no class there: its discriminator alone is exported.
With backbone `modern` the classes are ModernBERT's (`hub_modern`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from electra_dist.config.schema import DataConfig, ModelConfig, ObjectiveConfig, RunConfig
from electra_dist.errors import UserError
from electra_dist.model import hub_modern as modern
from electra_dist.model.electra import Generator, JointElectra
from electra_dist.model.hub_names import hf_names
from electra_dist.model.hub_sharing import (
    check_wanted,
    own_names_of,
    read_sharing,
    sharing_marks,
    subtract_shared,
    weights_alone,
)
from electra_dist.model.padding import stored_parameters, stored_shapes
from electra_dist.runtime.files import write_bytes_atomic, write_json_atomic
from electra_dist.runtime.special_tokens import special_tokens, token_ids


def export(model: JointElectra, tokenizer: Path, folder: Path) -> None:
    """Write the product to `folder`, the generator beside it: Hugging Face format, with tokenizer.

    Args:
        model: the joint module; its weights are written in fp32.
        tokenizer: the corpus's tokenizer.json.
        folder: made if it is not there; must hold no other model.

    Raises:
        UserError: the folder holds a model already.
    """
    if (folder / "config.json").exists():
        raise UserError(f"{folder} holds a model already; remove it or give another --out folder")
    # config.json of `folder` is the very last file: a folder without it is no model, and an export
    # that was cut off is simply made again.
    if model.discriminator is None:
        _export_tower(model, "generator", tokenizer, folder)
        return
    if isinstance(model.generator, Generator):
        _export_tower(model, "generator", tokenizer, folder / "generator")
    _export_tower(model, "discriminator", tokenizer, folder)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a Hugging Face folder holds."""

    config: RunConfig
    """Shapes as its config.json says; the generator's only if `has_generator`."""
    weights: dict[str, Tensor]
    """By our names. Heads, or a tower, that it lacks are left out."""
    tokenizer: Path | None
    """Its tokenizer.json or vocab.txt."""

    @property
    def has_generator(self) -> bool:
        """Whether a generator came with it."""
        return any(name.startswith("generator.") for name in self.weights)


def read(folder: Path, generator: Path | None = None) -> Imported:
    """The weights in a Hugging Face ELECTRA folder, by our names.

    ElectraForPreTraining and ElectraModel are the discriminator, `generator` (or else
    `folder`/generator, if it is there) an ElectraForMaskedLM beside it; a lone ElectraForMaskedLM
    is an `mlm` module.

    Raises:
        UserError: no ELECTRA model there, one of a shape that this encoder does not have, or two
            that do not share their embeddings.
    """
    hf = _read_config(folder)
    if hf["model_type"] == "modernbert":
        if generator is not None:
            raise UserError(
                f"{generator} cannot be read beside {folder}: the towers of an exported modern "
                "model share no table any more; leave the generator out"
            )
        config, found = modern.read(folder, hf, _read_weights(folder, "model."))
        _check_shapes_of(config, found, folder)
        return Imported(config=config, weights=found, tokenizer=_tokenizer_in(folder))
    weights = _read_weights(folder)
    is_masked_lm = any(name.startswith("generator_predictions.") for name in weights)
    config = _config_from_hf(hf, folder)
    if is_masked_lm and generator is not None:
        raise UserError(
            f"{folder} is an ElectraForMaskedLM itself; give the ElectraForPreTraining folder with "
            f"its generator {generator}, or leave the generator out"
        )
    towers = {"generator" if is_masked_lm else "discriminator": (folder, weights)}
    beside = generator or folder / "generator"
    if is_masked_lm:
        config = replace(config, objective=ObjectiveConfig(name="mlm"))
    elif generator is not None or (beside / "config.json").is_file():
        hf = _read_config(beside)
        theirs = _config_from_hf(hf, beside).model
        joint = replace(
            config.model,
            generator_num_layers=theirs.num_layers,
            generator_hidden_size=theirs.hidden_size,
            **read_sharing(hf, beside),
        )
        config = replace(config, model=joint)
        towers["generator"] = (beside, _read_weights(beside))
    ours: dict[str, Tensor] = {}
    with torch.device("meta"):
        model = JointElectra(config)
    for tower, (place, found) in towers.items():
        own_names = own_names_of(model, tower)
        for plain, value in _translated(model, tower, found, place):
            name = own_names[plain]
            if name in ours and not torch.equal(ours[name], value):
                raise UserError(
                    f"{beside} and {folder} do not share {name}, which our towers do; import "
                    f"{folder} without a generator"
                )
            ours[name] = value
    subtract_shared(ours)
    return Imported(config=config, weights=ours, tokenizer=_tokenizer_in(folder))


def _tokenizer_in(folder: Path) -> Path | None:
    files = [folder / name for name in ("tokenizer.json", "vocab.txt")]
    return next((path for path in files if path.is_file()), None)


def _check_shapes_of(config: RunConfig, weights: Mapping[str, Tensor], folder: Path) -> None:
    with torch.device("meta"):
        shapes = stored_shapes(JointElectra(config))
    for name, value in weights.items():
        if tuple(value.shape) != shapes[name]:
            raise UserError(
                f"{folder}: {name} has shape {tuple(value.shape)}, config.json says {shapes[name]}"
            )


@torch.no_grad()
def load(folder: Path) -> JointElectra:
    """A joint module from a Hugging Face ELECTRA folder, see `read`.

    Heads and a generator that the folder lacks stay freshly initialized.

    Raises:
        UserError: as `read`.
    """
    imported = read(folder)
    model = JointElectra(imported.config)
    parameters = stored_parameters(model)
    for name, value in imported.weights.items():
        parameters[name].copy_(value)
    return model


def _names_of(model: JointElectra, tower: str) -> dict[str, tuple[str, ...]]:
    encoder = getattr(model, tower).encoder
    return hf_names(tower, len(encoder.layers), has_project=encoder.embeddings_project is not None)


def _export_tower(model: JointElectra, tower: str, tokenizer: Path, folder: Path) -> None:
    is_modern = model.config.backbone == "modern"
    weights = modern.weights_of(model, tower) if is_modern else _electra_weights(model, tower)
    folder.mkdir(parents=True, exist_ok=True)
    # Not safetensors' save_file: its files are readable by their owner only, whatever the umask.
    data = safetensors.torch.save(weights, metadata={"format": "pt"})
    write_bytes_atomic(folder / "model.safetensors", data)
    _export_tokenizer(
        tokenizer, model.config.max_position_embeddings, folder, has_types=not is_modern
    )
    vocab = json.loads(tokenizer.read_bytes())
    ids = token_ids(vocab)
    special_ids = {role: ids[name] for role, name in special_tokens(vocab).items()}
    make_config = modern.config_of if is_modern else _hf_config
    write_json_atomic(folder / "config.json", make_config(model, tower, special_ids))


def _electra_weights(model: JointElectra, tower: str) -> dict[str, Tensor]:
    alone = weights_alone(model, tower)
    weights: dict[str, Tensor] = {}
    for ours, theirs in _names_of(model, tower).items():
        pieces = alone[ours].detach().float().cpu().chunk(len(theirs))
        weights |= {name: piece.clone() for name, piece in zip(theirs, pieces, strict=True)}
    return weights


def _export_tokenizer(tokenizer: Path, max_length: int, folder: Path, *, has_types: bool) -> None:
    write_bytes_atomic(folder / "tokenizer.json", tokenizer.read_bytes())
    names = special_tokens(json.loads(tokenizer.read_bytes()))
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": [
            "input_ids",
            *(["token_type_ids"] if has_types else []),
            "attention_mask",
        ],
        **{f"{role}_token": name for role, name in names.items()},
    }
    write_json_atomic(folder / "tokenizer_config.json", values)


def _hf_config(model: JointElectra, tower: str, special_ids: Mapping[str, int]) -> dict[str, Any]:
    config = model.config
    is_generator = tower == "generator" and model.discriminator is not None
    narrow = is_generator and config.untied_generator
    marked = sharing_marks(config)
    return {
        "architectures": [
            "ElectraForPreTraining" if tower == "discriminator" else "ElectraForMaskedLM"
        ],
        "model_type": "electra",
        "vocab_size": model.vocab_size,
        "embedding_size": stored_shapes(model)[
            own_names_of(model, tower)["embeddings.word.weight"]
        ][1],
        "hidden_size": config.generator_hidden_size if narrow else config.hidden_size,
        "num_hidden_layers": config.generator_num_layers if narrow else config.num_layers,
        "num_attention_heads": config.generator_num_heads if narrow else config.num_heads,
        "intermediate_size": config.generator_ffn_size if narrow else config.ffn_size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "initializer_range": config.initializer_range,
        "layer_norm_eps": config.layer_norm_eps,
        "pad_token_id": special_ids["pad"],
        "tie_word_embeddings": True,
        "dtype": "float32",
        **({"electra_dist": marked} if is_generator and marked else {}),
    }


def _config_from_hf(hf: Mapping[str, Any], folder: Path) -> RunConfig:
    model = ModelConfig(
        num_layers=hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        embedding_size=hf["embedding_size"],
        generator_num_layers=hf["num_hidden_layers"],
        vocab_size=hf["vocab_size"],
        max_position_embeddings=hf["max_position_embeddings"],
        type_vocab_size=hf["type_vocab_size"],
        hidden_dropout=hf["hidden_dropout_prob"],
        attention_dropout=hf["attention_probs_dropout_prob"],
        layer_norm_eps=hf["layer_norm_eps"],
        initializer_range=hf["initializer_range"],
    )
    wanted = {
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.ffn_size,
        "hidden_act": "gelu",
    }
    check_wanted(hf, wanted, folder)
    data = DataConfig(sequence_length=min(128, model.max_position_embeddings))
    return RunConfig(recipe="imported", model=model, data=data)


def _read_config(folder: Path) -> dict[str, Any]:
    from transformers import ElectraConfig, ModernBertConfig

    try:
        values = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        raise UserError(
            f"{folder} holds no readable config.json; give a Hugging Face ELECTRA folder"
        ) from None
    kinds = {"electra": ElectraConfig, "modernbert": ModernBertConfig}
    if values.get("model_type") not in kinds:
        raise UserError(
            f"{folder}: model_type = {values.get('model_type')!r}; give an ELECTRA model"
        )
    full: dict[str, Any] = kinds[values["model_type"]](**values).to_dict()
    return full


def _read_weights(folder: Path, prefix: str = "electra.") -> dict[str, Tensor]:
    """Weights by the names of the heads' classes; a bare body's get the missing prefix."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path} does not exist; only safetensors weights are read (no pickle)")
    try:
        weights = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); copy it anew") from None
    if not any(name.startswith(prefix) for name in weights):
        weights = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    return weights


def _translated(
    model: JointElectra, tower: str, weights: Mapping[str, Tensor], folder: Path
) -> Iterator[tuple[str, Tensor]]:
    """A tower's weights by our names if tied, their shapes checked against its config.json."""
    shapes = stored_shapes(model)
    own_names = own_names_of(model, tower)
    for ours, theirs in _names_of(model, tower).items():
        if any(name not in weights for name in theirs):
            if ours.startswith(f"{tower}.head."):
                continue  # a bare ElectraModel has no heads
            raise UserError(f"{folder}: the weights lack {theirs[0]}; is it a whole ELECTRA model?")
        value = torch.cat([weights[name] for name in theirs]) if theirs[1:] else weights[theirs[0]]
        wanted = shapes[own_names[ours]]
        if value.shape != wanted:
            raise UserError(
                f"{folder}: {theirs[0]} has shape {tuple(value.shape)}, "
                f"config.json says {tuple(wanted)}"
            )
        yield ours, value
