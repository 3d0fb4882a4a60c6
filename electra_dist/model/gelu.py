"""GELU in the form in which torch's compiler is fast on a CPU.

Shapes: T tokens, F width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from electra_dist.model import operations


class _Gelu(torch.autograd.Function):
    """x P(x), with its slope P(x) + x p(x) kept in place of x; P and p of the normal distribution.

    One loop forward writes both, and the backward pass is one product. By itself the compiler keeps
    x alone and makes x P(x) again there, for the gradient of the next weights: a second erf, and 16
    bytes an element more to and from memory (together 3 % of a step of `small`).
    """

    @staticmethod
    def forward(ctx: Any, values_TF: Tensor) -> Tensor:
        share_TF = 0.5 + 0.5 * torch.erf(values_TF * math.sqrt(0.5))
        density_TF = torch.exp(-0.5 * values_TF * values_TF) * (1.0 / math.sqrt(2.0 * math.pi))
        activated_TF, slope_TF = values_TF * share_TF, share_TF + values_TF * density_TF
        operations.kept(activated_TF, slope_TF)
        ctx.save_for_backward(slope_TF)
        return activated_TF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TF: Tensor) -> Tensor:
        slope_TF: Tensor
        (slope_TF,) = ctx.saved_tensors
        return gradient_TF * slope_TF


def gelu(values_TF: Tensor) -> Tensor:
    """GELU by erf; compiled off CUDA in fp32 and wider its slope is kept for the backward pass."""
    keeps_slope = torch.compiler.is_compiling() and torch.is_grad_enabled()
    if values_TF.is_cuda or values_TF.itemsize < 4 or not keeps_slope:
        return F.gelu(values_TF)
    activated_TF: Tensor = _Gelu.apply(values_TF)
    return activated_TF
