"""Every matrix product of a joint step, alone: forward, and both gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from electra_dist.config.schema import RunConfig


@dataclass(frozen=True)
class Product:
    """`times` products of [batch] [rows, inner] x [inner, columns], and their gradients."""

    name: str
    times: int
    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Of all of them: a product and its two gradients cost the same."""
        return 3 * 2 * self.times * self.batch * self.rows * self.inner * self.columns

    def __str__(self) -> str:
        batch = f"{self.batch} x " if self.batch > 1 else ""
        return (
            f"{self.name:26} {self.times:3} x {batch}[{self.rows}, {self.inner}] x "
            f"[{self.inner}, {self.columns}]  {self.flops / 1e9:.2f} GFLOP"
        )


def of_step(config: RunConfig, *, num_tokens: int, num_rows: int, num_slots: int) -> list[Product]:
    """The products of a step over rows that hold so many tokens and used slots."""
    model = config.model
    length = config.data.sequence_length
    embedding = model.embedding_size
    assert model.vocab_size is not None
    shapes = []
    for tower, layers, width, heads in (
        ("generator", model.generator_num_layers, model.generator_hidden_size,
         model.generator_num_heads),
        ("discriminator", model.num_layers, model.hidden_size, model.num_heads),
    ):  # fmt: skip
        per_head = width // heads
        shapes += [
            Product(f"{tower} project", 1, 1, num_tokens, embedding, width),
            Product(f"{tower} qkv", layers, 1, num_tokens, width, 3 * width),
            Product(f"{tower} scores", layers, num_rows * heads, length, per_head, length),
            Product(f"{tower} context", layers, num_rows * heads, length, length, per_head),
            Product(f"{tower} attention output", layers, 1, num_tokens, width, width),
            Product(f"{tower} ffn in", layers, 1, num_tokens, width, 4 * width),
            Product(f"{tower} ffn out", layers, 1, num_tokens, 4 * width, width),
        ]
    return [
        *shapes,
        Product("generator head", 1, 1, num_slots, model.generator_hidden_size, embedding),
        Product("generator logits", 1, 1, num_slots, embedding, model.vocab_size),
        Product("discriminator head", 1, 1, num_tokens, model.hidden_size, model.hidden_size),
    ]


def flops(products: Sequence[Product]) -> int:
    """Of a whole step."""
    return sum(product.flops for product in products)


def runner(products: Sequence[Product], *, warm: bool = False) -> Callable[[], None]:
    """Runs them all, forward and then backward, as F.linear and its backward call them.

    y = x w', dx = dy w, dw = dy' x; results go to buffers that are there. Each product has operands
    of its own, as each layer of a step has; `warm`: one set for all layers, which the caches keep.
    """
    prepared = []
    for product in products:
        shared = _operands(product) if warm else None
        prepared += [
            (product.batch > 1, *(shared or _operands(product))) for _ in range(product.times)
        ]

    def run() -> None:
        for batched, x, w, y, _, _ in prepared:
            (torch.bmm if batched else torch.mm)(x, w.mT, out=y)
        for batched, x, w, y, dx, dw in reversed(prepared):
            multiply = torch.bmm if batched else torch.mm
            multiply(y, w, out=dx)
            multiply(y.mT, x, out=dw)

    return run


def _operands(product: Product) -> tuple[Tensor, ...]:
    shapes = (
        (product.rows, product.inner),
        (product.columns, product.inner),
        (product.rows, product.columns),
        (product.rows, product.inner),
        (product.columns, product.inner),
    )
    lead = (product.batch,) if product.batch > 1 else ()
    # Small numbers: each run feeds a product's result to the next.
    return tuple(torch.rand(*lead, *shape) * 1e-3 for shape in shapes)
