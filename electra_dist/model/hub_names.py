"""Names of ELECTRA's weights: ours and those of Hugging Face's classes."""

from __future__ import annotations

_EMBEDDINGS = {
    "embeddings.word.weight": "electra.embeddings.word_embeddings.weight",
    "embeddings.position.weight": "electra.embeddings.position_embeddings.weight",
    "embeddings.token_type.weight": "electra.embeddings.token_type_embeddings.weight",
    "embeddings.layer_norm.weight": "electra.embeddings.LayerNorm.weight",
    "embeddings.layer_norm.bias": "electra.embeddings.LayerNorm.bias",
}
_PROJECT = {
    f"encoder.embeddings_project.{part}": f"electra.embeddings_project.{part}"
    for part in ("weight", "bias")
}
_LAYER = {
    "attention_output": "attention.output.dense",
    "attention_layer_norm": "attention.output.LayerNorm",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "ffn_layer_norm": "output.LayerNorm",
}
_QKV = ("query", "key", "value")
_HEADS = {
    "discriminator": {
        "head.dense": "discriminator_predictions.dense",
        "head.out": "discriminator_predictions.dense_prediction",
    },
    "generator": {
        "head.dense": "generator_predictions.dense",
        "head.layer_norm": "generator_predictions.LayerNorm",
    },
}


def hf_names(tower: str, num_layers: int, *, has_project: bool) -> dict[str, tuple[str, ...]]:
    """Our parameter name -> theirs, for one tower; three where theirs splits ours equally."""
    names: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in _EMBEDDINGS.items()}
    if has_project:
        names |= {f"{tower}.{ours}": (theirs,) for ours, theirs in _PROJECT.items()}
    for i in range(num_layers):
        ours, theirs = f"{tower}.encoder.layers.{i}", f"electra.encoder.layer.{i}"
        for part in ("weight", "bias"):
            names[f"{ours}.qkv.{part}"] = tuple(
                f"{theirs}.attention.self.{one}.{part}" for one in _QKV
            )
            for mine, other in _LAYER.items():
                names[f"{ours}.{mine}.{part}"] = (f"{theirs}.{other}.{part}",)
    for mine, other in _HEADS[tower].items():
        for part in ("weight", "bias"):
            names[f"{tower}.{mine}.{part}"] = (f"{other}.{part}",)
    if tower == "generator":
        names["generator.head.bias"] = ("generator_lm_head.bias",)
    return names
