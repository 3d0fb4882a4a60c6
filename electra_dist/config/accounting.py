"""What a config comes to, before anything is allocated: its towers and parameters. No torch.

`parameter_shapes` is the one description of the joint module outside the module itself: counts,
memory (`config.memory`), traffic (`config.traffic`) and checkpoint sizes (`launch.plan`) follow
from it, and tests hold it against the built module, name by name. Who changes a tower in
`model/` changes it here: `towers` for what there is, `_layer_shapes`, `_head_shapes` and
`parameter_shapes` for weights; its matrix products are counted in `config.flops`, and what is
another in the `modern` backbone stands in `accounting_modern`.

Letters: L positions of a row, V vocabulary, E embedding width, D width of a tower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from electra_dist.config import accounting_modern as modern
from electra_dist.config.schema import ModelConfig, RunConfig

DEFAULT_VOCAB_SIZE = 30522
"""Of google-research/electra: taken where the config leaves the size to the corpus."""
TINY_VOCAB_SIZE = 8192
"""What the demo trains for `tiny`."""

OBJECTIVES_OF_ONE_TOWER = ("mlm",)
"""Objectives without a discriminator: their one tower has the discriminator's size."""
OBJECTIVES_WITHOUT_GENERATOR = ("uniform_generator",)
OBJECTIVES_OF_CAUSAL_TOWERS = ("electric",)
"""Objectives whose generator is two encoders, with logits at every position."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Size of one transformer, and what stands on top of it."""

    name: str
    """`generator` or `discriminator`, as in the joint module."""
    num_layers: int
    width: int
    num_heads: int
    embedding_size: int
    """Width of the tables that it reads."""
    encoders: tuple[str, ...] = ("encoder",)
    """Names of its encoders, all of this size; from the joint module's root where one is shared."""
    num_forwards: int = 1
    """Forward passes a step and row: 2 where replacements are sampled in one of their own."""

    @property
    def makes_logits(self) -> bool:
        """Over the vocabulary, at masked slots; else one a position."""
        return self.name == "generator"

    @property
    def makes_logits_everywhere(self) -> bool:
        """Over the vocabulary, at all positions (electric)."""
        return self.makes_logits and len(self.encoders) > 1


def vocab_size(config: RunConfig) -> int:
    """`model.vocab_size`, or what the recipe's corpora usually have."""
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    return TINY_VOCAB_SIZE if config.recipe == "tiny" else DEFAULT_VOCAB_SIZE


def towers(config: RunConfig) -> list[Tower]:
    """The towers of the joint module, in the order in which they run."""
    model, objective = config.model, config.objective
    discriminator = Tower(
        name="discriminator",
        num_layers=model.num_layers,
        width=model.hidden_size,
        num_heads=model.num_heads,
        embedding_size=model.embedding_size,
    )
    if objective.name in OBJECTIVES_OF_ONE_TOWER:
        return [replace(discriminator, name="generator")]
    if objective.name in OBJECTIVES_WITHOUT_GENERATOR:
        return [discriminator]
    num_forwards = 1 if objective.sampling_dropout else 2
    if not model.untied_generator:
        return [replace(discriminator, name="generator", num_forwards=num_forwards), discriminator]
    generator = Tower(
        name="generator",
        num_layers=model.generator_num_layers,
        width=model.generator_hidden_size,
        num_heads=model.generator_num_heads,
        embedding_size=(
            model.generator_hidden_size
            if model.untied_generator_embeddings
            else model.embedding_size
        ),
        encoders=(
            ("left_to_right", "right_to_left")
            if objective.name in OBJECTIVES_OF_CAUSAL_TOWERS
            else ("encoder",)
        ),
        num_forwards=num_forwards,
    )
    return [generator, discriminator]


# ------------------------------------------------------------------------------------- parameters


def parameter_shapes(config: RunConfig) -> Shapes:
    """Shape of every parameter of `JointElectra(config)`, in its order; what is shared stands once.

    What the towers share stands at the root.
    """
    model, rows = config.model, vocab_size(config)
    shapes = _named("embeddings", _embedding_shapes(model, model.embedding_size, rows))
    if not model.untied_generator:
        shapes |= _named("encoder", _encoder_shapes(model, towers(config)[-1]))
    for tower in towers(config):
        own: Shapes = {}
        if tower.makes_logits and model.untied_generator_embeddings:
            own |= _named("embeddings", _embedding_shapes(model, tower.embedding_size, rows))
        if not tower.makes_logits and model.embedding_sharing == "gradient_disentangled":
            difference = _embedding_shapes(model, model.embedding_size, rows)
            own |= _named("embeddings.difference", difference)
        if model.untied_generator:
            for encoder in tower.encoders:
                own |= _named(encoder, _encoder_shapes(model, tower))
        shapes |= _named(tower.name, own | _named("head", _head_shapes(model, tower, rows)))
    return shapes


def padded_shapes(config: RunConfig) -> Shapes:
    """Shapes as they lie in memory: word tables with their padding, which no file holds."""
    rows = config.model.padded(vocab_size(config))
    return {
        name: (rows, *shape[1:]) if name.endswith("word.weight") else shape
        for name, shape in parameter_shapes(config).items()
    }


def num_parameters(config: RunConfig) -> dict[str, int]:
    """Unique trainable parameters: `joint`, and `discriminator` with tables and head.

    Where the objective has no discriminator, its one tower is the product and stands for it.
    Differences from shared tables are merged into them in the product, and not counted there.
    """
    shapes = parameter_shapes(config)
    product = ("embeddings.", "encoder.", f"{towers(config)[-1].name}.")
    return {
        "joint": sum(map(math.prod, shapes.values())),
        "discriminator": sum(
            math.prod(shape)
            for name, shape in shapes.items()
            if name.startswith(product) and ".difference." not in name
        ),
    }


def is_decayed(name: str) -> bool:
    """Whether weight decay applies: not to LayerNorm and biases."""
    return not (name.endswith("bias") or "layer_norm" in name)


def _embedding_shapes(model: ModelConfig, width: int, rows: int) -> Shapes:
    if model.backbone == "modern":
        return modern.embedding_shapes(width, rows)
    return {
        "word.weight": (rows, width),
        "position.weight": (model.max_position_embeddings, width),
        "token_type.weight": (model.type_vocab_size, width),
        **_named("layer_norm", _norm(width)),
    }


def _encoder_shapes(model: ModelConfig, tower: Tower) -> Shapes:
    if model.backbone == "modern":
        return modern.encoder_shapes(model, tower)
    shapes: Shapes = {}
    if tower.embedding_size != tower.width:
        shapes |= _named("embeddings_project", _linear(tower.embedding_size, tower.width))
    for number in range(tower.num_layers):
        shapes |= _named(f"layers.{number}", _layer_shapes(tower.width))
    return shapes


def _head_shapes(model: ModelConfig, tower: Tower, rows: int) -> Shapes:
    if model.backbone == "modern":
        return modern.head_shapes(tower, rows)
    if tower.makes_logits:
        width = len(tower.encoders) * tower.width
        return {
            "bias": (rows,),
            **_named("dense", _linear(width, tower.embedding_size)),
            **_named("layer_norm", _norm(tower.embedding_size)),
        }
    dense = _named("dense", _linear(tower.width, tower.width))
    return dense | _named("out", _linear(tower.width, 1))


def _layer_shapes(width: int) -> Shapes:
    return {
        **_named("qkv", _linear(width, 3 * width)),
        **_named("attention_output", _linear(width, width)),
        **_named("attention_layer_norm", _norm(width)),
        **_named("ffn_in", _linear(width, 4 * width)),
        **_named("ffn_out", _linear(4 * width, width)),
        **_named("ffn_layer_norm", _norm(width)),
    }


def _linear(inputs: int, outputs: int) -> Shapes:
    return {"weight": (outputs, inputs), "bias": (outputs,)}


def _norm(width: int) -> Shapes:
    return {"weight": (width,), "bias": (width,)}


def _named(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}
