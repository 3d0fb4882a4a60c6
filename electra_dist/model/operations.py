"""Operations of our own, opaque to torch's compiler: it calls them and fuses nothing into them.

By `torch.library.Library`, whose calls cost a few microseconds; those of
`torch.library.custom_op` take 113.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("electra_dist", "FRAGMENT")
Result = TypeVar("Result", Tensor, None)


def define(
    signature: str, run: Callable[..., Result], shape_of: Callable[..., Result]
) -> Callable[..., Result]:
    """An operation without a gradient, as torch's schema language writes it: "name(...) -> Tensor".

    Or "name(...) -> ()", for one that gives nothing.

    Args:
        signature: name, arguments and result.
        run: what it does, on every device.
        shape_of: an empty tensor of the result's shape, type and device, for the compiler; or None.
    """
    name = signature.split("(")[0]
    # Without the tag torch copies what it is given into the layout that it was traced with.
    _LIBRARY.define(signature, tags=(torch.Tag.flexible_layout,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"electra_dist::{name}", shape_of, lib=_LIBRARY)
    operation: Callable[..., Result] = getattr(torch.ops.electra_dist, name).default
    return operation


_kept = define("kept(Tensor(a!)[] values) -> ()", lambda _: None, lambda _: None)


def kept(*values: Tensor) -> None:
    """Have a compiled backward pass read these values of the forward pass, one of which goes on.

    It makes again what takes no product to make, however much that has to read. The operation does
    nothing, but says that it writes: what it was given can't be made again without it.
    """
    _kept(list(values))
