"""The `modern` backbone in transformers' ModernBERT classes, both ways.

    discriminator   ModernBertForTokenClassification with one label, "replaced"
    generator       ModernBertForMaskedLM

Their word table is as wide as the model. Ours, times the projection behind it, is that table: an
export of a tower with a projection holds the product, and another tower cannot share it any more.
So what is read back has tables as wide as the model, and no generator of another width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from electra_dist.config.schema import DataConfig, ModelConfig, ObjectiveConfig, RunConfig
from electra_dist.errors import UserError
from electra_dist.model.electra import JointElectra
from electra_dist.model.hub_sharing import check_wanted, own_names_of, weights_alone

_TABLE = "model.embeddings.tok_embeddings.weight"
_LAYER = {
    "attention_layer_norm": "attn_norm",
    "qkv": "attn.Wqkv",
    "attention_output": "attn.Wo",
    "ffn_layer_norm": "mlp_norm",
    "ffn_in": "mlp.Wi",
    "ffn_out": "mlp.Wo",
}
_HEADS = {
    "discriminator": {"out.weight": "classifier.weight", "out.bias": "classifier.bias"},
    "generator": {"bias": "decoder.bias"},
}
_NUM_LAYERS, _WIDTH, _HEADS_OF = "num_hidden_layers", "hidden_size", "num_attention_heads"


def names_of(tower: str, num_layers: int) -> dict[str, str]:
    """Our parameter name -> theirs, for one tower; without word table, projections and decoder."""
    names = {
        "encoder.embeddings_layer_norm.weight": "model.embeddings.norm.weight",
        "encoder.final_layer_norm.weight": "model.final_norm.weight",
        "head.dense.weight": "head.dense.weight",
        "head.layer_norm.weight": "head.norm.weight",
        **{f"head.{ours}": theirs for ours, theirs in _HEADS[tower].items()},
    }
    for number in range(num_layers):
        for ours, theirs in _LAYER.items():
            if number or ours != "attention_layer_norm":
                name = f"encoder.layers.{number}.{ours}.weight"
                names[name] = f"model.layers.{number}.{theirs}.weight"
    return {f"{tower}.{ours}": theirs for ours, theirs in names.items()}


def weights_of(model: JointElectra, tower: str) -> dict[str, Tensor]:
    """A tower's weights by their names, in fp32 on the CPU."""
    alone = {
        name: value.detach().float().cpu() for name, value in weights_alone(model, tower).items()
    }
    table_VE = alone["embeddings.word.weight"]
    project_DE = alone.get(f"{tower}.encoder.embeddings_project.weight")
    weights = {_TABLE: table_VE if project_DE is None else table_VE @ project_DE.T}
    out_ED = alone.get(f"{tower}.head.project.weight")
    if out_ED is not None:
        weights["decoder.weight"] = table_VE @ out_ED
    num_layers = len(getattr(model, tower).encoder.layers)
    for ours, theirs in names_of(tower, num_layers).items():
        weights[theirs] = alone[ours].clone()
    return weights


def config_of(model: JointElectra, tower: str, special_ids: Mapping[str, int]) -> dict[str, Any]:
    """Their config.json.

    Args:
        model: the joint module.
        tower: which one.
        special_ids: ids by role (`pad`, `cls`, `sep`).
    """
    config, encoder = model.config, getattr(model, tower).encoder
    width = encoder.final_layer_norm.weight.shape[0]
    is_tied = f"{tower}.head.project.weight" not in own_names_of(model, tower)
    kinds = ("full_attention", "sliding_attention")
    layers = range(len(encoder.layers))
    values: dict[str, Any] = {
        "architectures": [
            "ModernBertForTokenClassification"
            if tower == "discriminator"
            else "ModernBertForMaskedLM"
        ],
        "model_type": "modernbert",
        "vocab_size": model.vocab_size,
        _WIDTH: width,
        "intermediate_size": config.inner_width(width),
        _NUM_LAYERS: len(encoder.layers),
        _HEADS_OF: width // encoder.head_width,
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "max_position_embeddings": config.max_position_embeddings,
        "initializer_range": config.initializer_range,
        "norm_eps": config.layer_norm_eps,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_bias": False,
        "decoder_bias": True,
        "attention_dropout": config.attention_dropout,
        "embedding_dropout": config.hidden_dropout,
        "mlp_dropout": config.hidden_dropout,
        "classifier_dropout": config.hidden_dropout,
        "local_attention": config.local_attention_window,
        "layer_types": [kinds[number % config.global_attention_every != 0] for number in layers],
        "rope_parameters": {
            kinds[0]: {"rope_type": "default", "rope_theta": config.rope_theta},
            kinds[1]: {"rope_type": "default", "rope_theta": config.local_rope_theta},
        },
        "pad_token_id": special_ids["pad"],
        "cls_token_id": special_ids["cls"],
        "bos_token_id": special_ids["cls"],
        "sep_token_id": special_ids["sep"],
        "eos_token_id": special_ids["sep"],
        "tie_word_embeddings": tower == "discriminator" or is_tied,
        "dtype": "float32",
    }
    if tower == "discriminator":
        values |= {"id2label": {"0": "replaced"}, "label2id": {"replaced": 0}}
    return values


def read(
    folder: Path, hf: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[RunConfig, dict[str, Tensor]]:
    """Config and weights by our names of a ModernBERT folder; heads that it lacks are left out.

    A ModernBertForMaskedLM is an `mlm` module, everything else a discriminator.

    Args:
        folder: for messages.
        hf: its config.json, with transformers' defaults filled in.
        weights: its model.safetensors, by the names of the heads' classes.

    Raises:
        UserError: a shape or an option that this backbone does not have, or a weight is missing.
    """
    tower = "generator" if "decoder.bias" in weights else "discriminator"
    config = RunConfig(
        recipe="imported",
        model=_model_config(folder, hf),
        objective=ObjectiveConfig(name="mlm" if tower == "generator" else "electra"),
        data=DataConfig(sequence_length=min(128, hf["max_position_embeddings"])),
    )
    ours: dict[str, Tensor] = {}
    names = {"embeddings.word.weight": _TABLE, **names_of(tower, config.model.num_layers)}
    for name, theirs in names.items():
        if theirs in weights:
            ours[name] = weights[theirs]
        elif not name.startswith(f"{tower}.head."):
            raise UserError(f"{folder}: the weights lack {theirs}; is it a whole ModernBERT model?")
    decoder = weights.get("decoder.weight")
    if decoder is not None and not decoder.equal(weights[_TABLE]):
        raise UserError(
            f"{folder}: its decoder is not its word table, which ours always is; begin from the "
            "checkpoint that it was exported from"
        )
    return config, ours


def _model_config(folder: Path, hf: Mapping[str, Any]) -> ModelConfig:
    width, rope = hf[_WIDTH], hf["rope_parameters"]
    is_local = [kind == "sliding_attention" for kind in hf["layer_types"]]
    num_layers = len(is_local)
    later = [number for number, local in enumerate(is_local) if number and not local]
    model = ModelConfig(
        backbone="modern",
        num_layers=num_layers,
        hidden_size=width,
        embedding_size=width,
        generator_num_layers=num_layers,
        vocab_size=hf["vocab_size"],
        max_position_embeddings=hf["max_position_embeddings"],
        hidden_dropout=hf["embedding_dropout"],
        attention_dropout=hf["attention_dropout"],
        layer_norm_eps=hf["norm_eps"],
        initializer_range=hf["initializer_range"],
        rope_theta=float(rope["full_attention"]["rope_theta"]),
        local_rope_theta=float(rope["sliding_attention"]["rope_theta"]),
        local_attention_window=hf["local_attention"],
        global_attention_every=later[0] if later else max(num_layers, 1),
    )
    every = model.global_attention_every
    wanted = {
        _HEADS_OF: model.num_heads,
        "intermediate_size": model.ffn_size,
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), False),
        "layer_types": [
            "sliding_attention" if number % every else "full_attention"
            for number in range(num_layers)
        ],
    }
    check_wanted(hf, wanted, folder)
    return model
