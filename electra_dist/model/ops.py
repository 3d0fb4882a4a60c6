"""The few operations that torch has no fast form of on every device, with their gradients by hand.

On CUDA dropout and attention are torch's own fused kernels, which draw from the default generator
of the device, seeded per micro-batch. Elsewhere torch falls back to a Bernoulli draw an element
(14 % of a step of `small` on a CPU) and to five kernels for attention.

Shapes: B rows, L positions, H heads, A head width, D = H A, N masked slots of a row, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from electra_dist.model import random
from electra_dist.model.linear import apart


def noise(keys_S2: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """What dropout at the sites takes, one row each, for values of up to a shape.

    On CUDA torch's kernels draw for themselves, and a row says no more than that there is dropout.
    """
    return keys_S2 if keys_S2.is_cuda else random.site_words(keys_S2, shape)


def dropout(values: Tensor, p: float, key: Tensor | None) -> Tensor:
    """Dropout keyed by its site; without a key (evaluation) the values themselves."""
    if key is None or p == 0.0:
        return values
    if values.is_cuda:
        return F.dropout(values, p)
    return values * _kept(random.site_words(key[None], values.shape)[0], p, values)


def add_dropped(residual: Tensor, values: Tensor, p: float, words: Tensor | None) -> Tensor:
    """Residual + dropout(values), one pass over them each way; `words` are the site's `noise`."""
    if words is None or p == 0.0:
        return residual + values
    if values.is_cuda:
        return residual + F.dropout(values, p)
    if torch.compiler.is_compiling():
        # Kept for the backward pass the mask would be written by the element, which takes five
        # times as long as all else in its loop: it is made again there, and never written.
        dropped: Tensor = checkpoint(
            _dropped, values, words, p, use_reentrant=False, preserve_rng_state=False
        )
        return residual + dropped
    added: Tensor = _AddMasked.apply(residual, values, _kept(words, p, values))
    return added


def _dropped(values: Tensor, words: Tensor, p: float) -> Tensor:
    return values * _kept(words, p, values)


def _kept(words: Tensor, p: float, values: Tensor) -> Tensor:
    """What values are multiplied by: 0 or 1 / (1 - p)."""
    return random.keep_mask(words, values.shape, p, values).mul_(random.keep_scale(p))


class _AddMasked(torch.autograd.Function):
    """Residual + values x mask: addcmul, whose own gradient takes a pass and a tensor more."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return torch.addcmul(residual, values, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (mask,) = ctx.saved_tensors
        return gradient, gradient * mask, None


def attention_bias(mask_B1QL: Tensor | None, like: Tensor) -> Tensor | None:
    """What `attention` adds to its scores, for all layers at once: 0 where the mask is True, -inf.

    In the type of `like`; None where there is no mask.
    """
    if mask_B1QL is None:
        return None
    bias_B1QL = torch.zeros_like(mask_B1QL, dtype=like.dtype)
    return bias_B1QL.masked_fill_(~mask_B1QL, float("-inf"))


def attention(
    qkv_BL3HA: Tensor, bias_B1QL: Tensor | None, p: float, words: Tensor | None
) -> Tensor:
    """Softmax(query key' / sqrt(A)) value, with dropout on the weights: [B, L, D].

    Args:
        qkv_BL3HA: queries, keys and values.
        bias_B1QL: from `attention_bias` (Q: 1 or L); every query may read one key at least.
        p: dropout, where there are words.
        words: the site's `noise`; None in evaluation.
    """
    batch, length, _, heads, width = qkv_BL3HA.shape
    dropout_p = 0.0 if words is None else p
    qkv_3BHLA = qkv_BL3HA.permute(2, 0, 3, 1, 4)
    if qkv_BL3HA.is_cuda or dropout_p == 0.0:
        query_BHLA, key_BHLA, value_BHLA = qkv_3BHLA.unbind(0)
        if bias_B1QL is not None:
            bias_B1QL = bias_B1QL.to(query_BHLA.dtype)
        context_BHLA = F.scaled_dot_product_attention(
            query_BHLA, key_BHLA, value_BHLA, attn_mask=bias_B1QL, dropout_p=dropout_p
        )
    else:
        assert words is not None
        keep_RL = random.keep_mask(words, (batch * heads * length, length), p, qkv_BL3HA)
        context_BHLA = _DroppedAttention.apply(qkv_3BHLA, bias_B1QL, keep_RL, random.keep_scale(p))
    return context_BHLA.transpose(1, 2).reshape(batch, length, heads * width)


class _DroppedAttention(torch.autograd.Function):
    """Attention from batched products, in as few passes over [B, H, L, L] as they allow.

    With W the softmax, M its dropped and rescaled form and O = M V, the gradient of the scores is
    M (dO V') - W rowsum(O dO): neither the mask nor a softmax gradient is needed.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv_3BHLA: Tensor, bias_B1QL: Tensor | None, keep_RL: Tensor, scale: float
    ) -> Tensor:
        _, batch, heads, length, width = qkv_3BHLA.shape
        qkv_3XLA = qkv_3BHLA.reshape(3, batch * heads, length, width)
        query_XLA, key_XLA, value_XLA = qkv_3XLA.unbind(0)
        scores_XLL = apart(_product(query_XLA, key_XLA.mT, width**-0.5))
        if bias_B1QL is not None:
            scores_XLL.view(batch, heads, length, length).add_(bias_B1QL)
        # As one matrix of R = X L rows, as the mask is: torch's compiler makes one loop of them.
        weights_RL = torch.softmax(scores_XLL.view(keep_RL.shape), dim=-1)
        dropped_XLL = keep_RL.mul_(weights_RL).view(scores_XLL.shape)
        weights_XLL = weights_RL.view(scores_XLL.shape)
        context_XLA = _product(dropped_XLL, value_XLA, scale)
        ctx.save_for_backward(qkv_3XLA, weights_XLL, dropped_XLL, context_XLA)
        ctx.scale = scale
        return context_XLA.view(batch, heads, length, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BHLA: Tensor) -> tuple[Tensor, None, None, None]:
        qkv_3XLA, weights_XLL, dropped_XLL, context_XLA = ctx.saved_tensors
        query_XLA, key_XLA, value_XLA = qkv_3XLA.unbind(0)
        gradient_XLA = gradient_BHLA.reshape(context_XLA.shape)
        width = gradient_XLA.shape[-1]
        scores_XLL = _product(gradient_XLA, value_XLA.mT, ctx.scale).mul_(dropped_XLL)
        sums_XL1 = (gradient_XLA * context_XLA).sum(-1, keepdim=True)
        scores_XLL.addcmul_(weights_XLL, sums_XL1, value=-1.0)
        gradients = (
            _product(scores_XLL, key_XLA, width**-0.5),
            _product(scores_XLL.mT, query_XLA, width**-0.5),
            _product(dropped_XLL.mT, gradient_XLA, ctx.scale),
        )
        # Written once, in the layout of the product that made them: [B, L, 3, H, A].
        shape_BHLA = gradient_BHLA.shape
        gradient_BL3HA = torch.stack([g.view(shape_BHLA).transpose(1, 2) for g in gradients], dim=2)
        return gradient_BL3HA.permute(2, 0, 3, 1, 4), None, None, None


def _product(left_XIJ: Tensor, right_XJK: Tensor, factor: float) -> Tensor:
    """A batched product times a factor that costs nothing: [X, I, K].

    Compiled, the factor joins the loop behind the product, where a product of fp16 may already have
    overflowed.
    """
    if torch.compiler.is_compiling() and left_XIJ.dtype != torch.float16:
        return torch.bmm(left_XIJ, right_XJK) * factor
    out_XIK = left_XIJ.new_empty(left_XIJ.shape[0], left_XIJ.shape[1], right_XJK.shape[2])
    # Into itself: into another tensor it would copy this one first. Not by `baddbmm_`, of which
    # torch counts no FLOPs.
    return torch.baddbmm(out_XIK, left_XIJ, right_XJK, beta=0.0, alpha=factor, out=out_XIK)


def cross_entropy(
    logits_BNR: Tensor, ids_BN: Tensor, vocab_size: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """-log p(id) at each slot [B, N] with gradient; and, without one, log Z and p of a slot.

    Z [B, N, 1] is the sum of the logits' exponentials and p [B, N, V] their softmax. One softmax in
    fp32 serves the loss, the samples and, as p - onehot, the gradient. The backward pass overwrites
    p (autograd refuses a second one). Of R logits the first `vocab_size` are shown: those of a
    padded word table are -inf, with p = 0, and nobody may draw them.
    """
    losses_BN, log_sums_BN1, probs_BNR = _CrossEntropy.apply(logits_BNR, ids_BN)
    return losses_BN, log_sums_BN1, probs_BNR[..., :vocab_size]


class _CrossEntropy(torch.autograd.Function):
    """The largest logit and its p give log Z: no second tensor of V numbers a slot is written."""

    @staticmethod
    def forward(ctx: Any, logits_BNV: Tensor, ids_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(logits_BNV.dtype, torch.float32)
        probs_BNV = torch.softmax(logits_BNV, dim=-1, dtype=dtype)
        largest_BN1 = logits_BNV.amax(-1, keepdim=True).to(dtype)
        log_largest_BN1 = probs_BNV.amax(-1, keepdim=True).log_()
        log_sums_BN1 = largest_BN1 - log_largest_BN1
        chosen_BN1 = logits_BNV.gather(-1, ids_BN.unsqueeze(-1)).to(dtype)
        losses_BN1 = (largest_BN1 - chosen_BN1) - log_largest_BN1
        ctx.save_for_backward(probs_BNV, ids_BN)
        ctx.mark_non_differentiable(log_sums_BN1, probs_BNV)
        ctx.set_materialize_grads(False)
        ctx.dtype = logits_BNV.dtype
        return losses_BN1.squeeze(-1), log_sums_BN1, probs_BNV

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient_BN: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, None]:
        if gradient_BN is None:
            return None, None
        probs_BNV, ids_BN = ctx.saved_tensors
        gradient_BN1 = gradient_BN.unsqueeze(-1)
        gradient_BNV = probs_BNV.mul_(gradient_BN1)  # V numbers a slot: the largest tensor of all
        gradient_BNV.scatter_add_(-1, ids_BN.unsqueeze(-1), -gradient_BN1)
        return gradient_BNV.to(ctx.dtype), None
