"""What a config comes to, before anything is allocated: parameters and FLOPs. No torch.

`parameter_shapes` is the one description of the joint module outside the module itself: counts,
memory (`config.memory`), traffic (`config.traffic`) and checkpoint sizes (`launch.plan`) follow
from it, and tests hold it against the built module, name by name. Who changes a tower in
`model/` changes it here: `towers` for what there is, `_layer_shapes`, `_head_shapes` and
`parameter_shapes` for weights, `_layer_products` and `_head_products` for matrix products; what is
another in the `modern` backbone stands in `accounting_modern`.

Letters: L positions of a row, V vocabulary, E embedding width, D width of a tower.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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


# ------------------------------------------------------------------------------------------ FLOPs


def train_flops(config: RunConfig) -> dict[str, float]:
    """FLOPs of the whole schedule in both conventions: `google` and `usual`."""
    num_rows = config.batch.global_batch_size * config.schedule.num_steps
    return {
        "google": num_rows * google_flops_of_row(config),
        "usual": float(num_rows * flops_of_row(config)),
    }


def flops_of_row(config: RunConfig) -> int:
    """Training FLOPs of one full row, usual convention: what MFU is computed from.

    Matrix products alone, two FLOPs a multiply-add; backward costs two forwards; tables are looked
    up and not multiplied; logits are made at `max_masked` slots (electric: at all positions); of
    local attention the pairs within the window count, whatever a kernel computes behind its mask.
    Recomputation (activation checkpointing) is no model FLOP; a forward pass of its own for
    sampling is.
    """
    length = config.data.sequence_length
    products = 0
    for tower in towers(config):
        forward = sum(_head_products(config, tower))
        for _ in tower.encoders:
            if tower.embedding_size != tower.width:
                forward += length * tower.embedding_size * tower.width
            forward += sum(_encoder_products(config.model, tower, length))
        products += (tower.num_forwards + 2) * forward
    return 2 * products


def _encoder_products(model: ModelConfig, tower: Tower, length: int) -> Iterator[int]:
    """Multiply-adds of all layers and a row, forward."""
    if model.backbone == "modern":
        yield from modern.encoder_products(model, tower, length)
        return
    for _ in range(tower.num_layers):
        yield from _layer_products(tower.width, length)


def _layer_products(width: int, length: int) -> Iterator[int]:
    """Multiply-adds of a layer and a row, forward."""
    yield length * width * 3 * width
    yield length * length * width  # scores
    yield length * length * width  # weighted values
    yield length * width * width
    yield 2 * length * width * 4 * width


def _head_products(config: RunConfig, tower: Tower) -> Iterator[int]:
    if config.model.backbone == "modern":
        places = config.max_masked if tower.makes_logits else config.data.sequence_length
        yield from modern.head_products(tower, places, vocab_size(config))
        return
    if tower.makes_logits:
        embedding = tower.embedding_size
        slots = config.max_masked
        if tower.makes_logits_everywhere:
            slots = config.data.sequence_length
        yield slots * len(tower.encoders) * tower.width * embedding
        yield slots * embedding * vocab_size(config)
    else:
        yield config.data.sequence_length * tower.width * tower.width
        yield config.data.sequence_length * tower.width


# Of google-research/electra, flops_computation.py: FLOPs an element.
_DROPOUT, _LAYER_NORM, _ACTIVATION, _SOFTMAX = 4, 5, 8, 5
_OUTPUT_FRACTION = 0.15625
"""Share of positions that it makes logits at, whatever the mask probability."""


def google_flops_of_row(config: RunConfig) -> float:
    """Training FLOPs of one row as google-research/electra counts them.

    Backward costs one forward; a look-up is a dense product with the table; every element-wise
    operation counts; the LayerNorm after attention counts once a position, not once an element (a
    slip of the original that its published numbers contain).
    """
    length, rows = config.data.sequence_length, vocab_size(config)
    total = 0.0
    for tower in towers(config):
        if config.model.backbone == "modern":
            forward = modern.google_flops(config.model, tower, length, rows, _OUTPUT_FRACTION)
            total += forward * (tower.num_forwards + 1) / 2
            continue
        width, embedding = tower.width, tower.embedding_size
        forward = 2.0 * embedding * (rows + length + 2) + 2 * embedding
        forward += (_LAYER_NORM + _DROPOUT) * embedding
        for _ in tower.encoders:
            if embedding != width:
                forward += 2 * width * embedding + width
            forward += tower.num_layers * _google_layer(width, tower.num_heads, length)
        if tower.makes_logits:
            inputs = len(tower.encoders) * width
            hidden = 2 * inputs * embedding + embedding + (_ACTIVATION + _LAYER_NORM) * embedding
            share = 1.0 if tower.makes_logits_everywhere else _OUTPUT_FRACTION
            forward += share * (2 * embedding * rows + hidden + (_SOFTMAX + 2) * rows)
        else:
            forward += 2 * width * width + width + _ACTIVATION * width + 2 * width
        total += forward * (tower.num_forwards + 1) / 2
    return 2.0 * length * total


def _google_layer(width: int, num_heads: int, length: int) -> int:
    """FLOPs of a layer a position, forward."""
    inner = 4 * width
    attention = 3 * 2 * width * width + 3 * width + 2 * 2 * width * length
    attention += (_SOFTMAX + _DROPOUT + 1) * length * num_heads
    attention += 2 * width * width + (1 + _DROPOUT + 1) * width + _LAYER_NORM
    ffn = 2 * 2 * width * inner + (_ACTIVATION + 1) * inner
    ffn += (1 + _DROPOUT + 1 + _LAYER_NORM) * width
    return attention + ffn
