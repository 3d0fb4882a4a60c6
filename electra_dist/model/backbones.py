"""What a tower is made of, by `model.backbone`; a new one is a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from electra_dist.config.schema import ModelConfig
from electra_dist.model import encoder, heads, modern

AnyEmbeddings = encoder.Embeddings | modern.Embeddings
AnyEncoder = encoder.Encoder | modern.Encoder
ENCODERS = (encoder.Encoder, modern.Encoder)
LAYERS = (encoder.Layer, modern.Layer)


class Backbone(NamedTuple):
    """Makers of the parts; all backbones' parts take the same arguments when called."""

    embeddings: Callable[[ModelConfig, int], AnyEmbeddings]
    """Of a config and a vocabulary size."""
    encoder: Callable[[ModelConfig, int, int, int], AnyEncoder]
    """Of a config, layers, width and heads."""
    generator_head: Callable[[ModelConfig, int, int], nn.Module]
    """Of a config, a width and a vocabulary size."""
    discriminator_head: Callable[[ModelConfig, int], nn.Module]
    """Of a config and a width."""


BACKBONES = {
    "bert": Backbone(
        encoder.Embeddings, encoder.Encoder, heads.GeneratorHead, heads.DiscriminatorHead
    ),
    "modern": Backbone(
        modern.Embeddings, modern.Encoder, modern.GeneratorHead, modern.DiscriminatorHead
    ),
}
