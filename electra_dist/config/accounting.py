"""What a config comes to, before anything is allocated: parameters and FLOPs. No torch.

`parameter_shapes` is the one description of the joint module outside the module itself: counts,
memory (`config.memory`), traffic (`config.traffic`) and checkpoint sizes (`launch.plan`) follow
from it, and tests hold it against the built module, name by name. Who changes a tower in
`model/` changes it here: `_layer_shapes` and `parameter_shapes` for weights, `_layer_products` and
`_head_products` for matrix products.

Letters: L positions of a row, V vocabulary, E embedding width, D width of a tower.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from electra_dist.config.schema import ModelConfig, RunConfig

DEFAULT_VOCAB_SIZE = 30522
"""Of google-research/electra: taken where the config leaves the size to the corpus."""
TINY_VOCAB_SIZE = 8192
"""What the demo trains for `tiny`."""

OBJECTIVES_OF_ONE_TOWER = ("mlm",)
"""Objectives without a discriminator: their one tower has the discriminator's size."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Size of one transformer, and what stands on top of it."""

    name: str
    """`generator` or `discriminator`, as in the joint module."""
    num_layers: int
    width: int
    num_heads: int

    @property
    def makes_logits(self) -> bool:
        """Over the vocabulary, at masked slots; else one a position."""
        return self.name == "generator"


def vocab_size(config: RunConfig) -> int:
    """`model.vocab_size`, or what the recipe's corpora usually have."""
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    return TINY_VOCAB_SIZE if config.recipe == "tiny" else DEFAULT_VOCAB_SIZE


def towers(config: RunConfig) -> list[Tower]:
    """The towers of the joint module, in the order in which they run."""
    model = config.model
    large = {
        "num_layers": model.num_layers,
        "width": model.hidden_size,
        "num_heads": model.num_heads,
    }
    if config.objective.name in OBJECTIVES_OF_ONE_TOWER:
        return [Tower(name="generator", **large)]
    generator = Tower(
        name="generator",
        num_layers=model.generator_num_layers,
        width=model.generator_hidden_size,
        num_heads=model.generator_num_heads,
    )
    return [generator, Tower(name="discriminator", **large)]


# ------------------------------------------------------------------------------------- parameters


def parameter_shapes(config: RunConfig) -> Shapes:
    """Shape of every parameter of `JointElectra(config)`, in its order; tied tables stand once."""
    model, rows = config.model, vocab_size(config)
    shapes: Shapes = {
        "embeddings.word.weight": (rows, model.embedding_size),
        "embeddings.position.weight": (model.max_position_embeddings, model.embedding_size),
        "embeddings.token_type.weight": (model.type_vocab_size, model.embedding_size),
        **_named("embeddings.layer_norm", _norm(model.embedding_size)),
    }
    for tower in towers(config):
        shapes |= _named(tower.name, _tower_shapes(model, tower, rows))
    return shapes


def num_parameters(config: RunConfig) -> dict[str, int]:
    """Unique trainable parameters: `joint`, and `discriminator` with tables and head.

    Where the objective has no discriminator, its one tower is the product and stands for it.
    """
    shapes = parameter_shapes(config)
    product = ("embeddings.", f"{towers(config)[-1].name}.")
    return {
        "joint": sum(map(math.prod, shapes.values())),
        "discriminator": sum(math.prod(s) for n, s in shapes.items() if n.startswith(product)),
    }


def is_decayed(name: str) -> bool:
    """Whether weight decay applies: not to LayerNorm and biases (`engine.optim.decay_groups`)."""
    return not (name.endswith("bias") or "layer_norm" in name)


def _tower_shapes(model: ModelConfig, tower: Tower, rows: int) -> Shapes:
    shapes: Shapes = {}
    if model.embedding_size != tower.width:
        project = _linear(model.embedding_size, tower.width)
        shapes |= _named("encoder.embeddings_project", project)
    for number in range(tower.num_layers):
        shapes |= _named(f"encoder.layers.{number}", _layer_shapes(tower.width))
    if tower.makes_logits:
        return {
            **shapes,
            "head.bias": (rows,),
            **_named("head.dense", _linear(tower.width, model.embedding_size)),
            **_named("head.layer_norm", _norm(model.embedding_size)),
        }
    shapes |= _named("head.dense", _linear(tower.width, tower.width))
    return shapes | _named("head.out", _linear(tower.width, 1))


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
    up and not multiplied; logits are made at `max_masked` slots. Recomputation (activation
    checkpointing) is no model FLOP.
    """
    length, model = config.data.sequence_length, config.model
    products = 0
    for tower in towers(config):
        if model.embedding_size != tower.width:
            products += length * model.embedding_size * tower.width
        products += tower.num_layers * sum(_layer_products(tower.width, length))
        products += sum(_head_products(config, tower))
    return 3 * 2 * products


def _layer_products(width: int, length: int) -> Iterator[int]:
    """Multiply-adds of a layer and a row, forward."""
    yield length * width * 3 * width
    yield length * length * width  # scores
    yield length * length * width  # weighted values
    yield length * width * width
    yield 2 * length * width * 4 * width


def _head_products(config: RunConfig, tower: Tower) -> Iterator[int]:
    if tower.makes_logits:
        slots, embedding = config.max_masked, config.model.embedding_size
        yield slots * tower.width * embedding
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
    length, embedding = config.data.sequence_length, config.model.embedding_size
    rows = vocab_size(config)
    total = 0.0
    for tower in towers(config):
        width = tower.width
        look_up = 2 * embedding * (rows + length + 2) + 2 * embedding
        look_up += (_LAYER_NORM + _DROPOUT) * embedding
        if embedding != width:
            look_up += 2 * width * embedding + width
        total += look_up + tower.num_layers * _google_layer(width, tower.num_heads, length)
        if tower.makes_logits:
            hidden = 2 * width * embedding + embedding + (_ACTIVATION + _LAYER_NORM) * embedding
            total += _OUTPUT_FRACTION * (2 * embedding * rows + hidden + (_SOFTMAX + 2) * rows)
        else:
            total += 2 * width * width + width + _ACTIVATION * width + 2 * width
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
