"""The part of `config.accounting` that differs in the `modern` backbone (`model/modern.py`).

Letters: L positions of a row, V vocabulary, E embedding width, D width of a tower, F inner width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from electra_dist.config.learning import ModelConfig

if TYPE_CHECKING:
    from electra_dist.config.accounting import Shapes, Tower


def embedding_shapes(width: int, rows: int) -> Shapes:
    """The word table alone."""
    return {"word.weight": (rows, width)}


def encoder_shapes(model: ModelConfig, tower: Tower) -> Shapes:
    """In the module's order; the first layer has no norm before its attention."""
    width, inner = tower.width, model.inner_width(tower.width)
    shapes: Shapes = {}
    if tower.embedding_size != width:
        shapes["embeddings_project.weight"] = (width, tower.embedding_size)
    shapes["embeddings_layer_norm.weight"] = (width,)
    for number in range(tower.num_layers):
        layer: Shapes = {
            "attention_layer_norm.weight": (width,),
            "qkv.weight": (3 * width, width),
            "attention_output.weight": (width, width),
            "ffn_layer_norm.weight": (width,),
            "ffn_in.weight": (2 * inner, width),
            "ffn_out.weight": (width, inner),
        }
        if number == 0:
            del layer["attention_layer_norm.weight"]
        shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
    return {**shapes, "final_layer_norm.weight": (width,)}


def head_shapes(tower: Tower, rows: int) -> Shapes:
    """Dense and norm; then to V through the embedding width, or to one logit."""
    width = tower.width
    shapes: Shapes = {"dense.weight": (width, width), "layer_norm.weight": (width,)}
    if not tower.makes_logits:
        return {**shapes, "out.weight": (1, width), "out.bias": (1,)}
    if tower.embedding_size != width:
        shapes["project.weight"] = (tower.embedding_size, width)
    return {"bias": (rows,), **shapes}


def attended_pairs(model: ModelConfig, number: int, length: int) -> int:
    """Pairs of a query and a key in layer `number`: what a mask leaves out is not counted."""
    reach = model.local_attention_window // 2
    if number % model.global_attention_every == 0 or length <= reach + 1:
        return length * length
    return length * (2 * reach + 1) - reach * (reach + 1)


def encoder_products(model: ModelConfig, tower: Tower, length: int) -> Iterator[int]:
    """Multiply-adds of all layers and a row, forward."""
    width = tower.width
    for number in range(tower.num_layers):
        yield length * width * 3 * width
        yield 2 * attended_pairs(model, number, length) * width  # scores; weighted values
        yield length * width * width
        yield 3 * length * width * model.inner_width(width)


def head_products(tower: Tower, places: int, rows: int) -> Iterator[int]:
    """Multiply-adds of a head at so many places of a row, forward."""
    yield places * tower.width * tower.width
    if not tower.makes_logits:
        yield places * tower.width
        return
    if tower.embedding_size != tower.width:
        yield places * tower.width * tower.embedding_size
    yield places * tower.embedding_size * rows


# FLOPs an element, as google-research/electra has them; a rotation is 2 products and a sum.
_DROPOUT, _LAYER_NORM, _ACTIVATION, _SOFTMAX, _ROTATION = 4, 5, 8, 5, 3


def google_flops(
    model: ModelConfig, tower: Tower, length: int, rows: int, output_share: float
) -> float:
    """FLOPs of a tower a position, forward, in google-research/electra's convention.

    Its own program knows no such layers; each operation counts as the like of it does there.
    """
    width, embedding, inner = tower.width, tower.embedding_size, model.inner_width(tower.width)
    total = 2.0 * embedding * rows + (_LAYER_NORM + _DROPOUT) * width
    if embedding != width:
        total += 2 * width * embedding
    for number in range(tower.num_layers):
        keys = attended_pairs(model, number, length) / length
        total += _LAYER_NORM * width if number else 0
        total += 3 * 2 * width * width + _ROTATION * 2 * width + 2 * 2 * width * keys
        total += (_SOFTMAX + _DROPOUT + 1) * keys * tower.num_heads
        total += 2 * width * width + (_DROPOUT + 1) * width
        total += _LAYER_NORM * width + 3 * 2 * width * inner + (_ACTIVATION + 1) * inner
        total += (_DROPOUT + 1) * width
    total += _LAYER_NORM * width
    head = 2.0 * width * width + (_ACTIVATION + _LAYER_NORM) * width
    if not tower.makes_logits:
        return total + head + 2 * width
    head += 2 * width * embedding if embedding != width else 0
    head += 2 * embedding * rows + (_SOFTMAX + 2) * rows
    return total + output_share * head
