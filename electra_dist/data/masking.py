"""Which tokens are selected and which of them become [MASK] (as google-research/electra).

A function of (seed, position) and of the row. Which tokens are drawn is `objective.masking`:

- `token`: each by itself;
- `whole_word`: words, as the corpus's word-start bits have them;
- `span`: runs of tokens, a new one starting at a token with probability 1 / mean_span_length, so
  that their lengths are geometric.

The count is the same for all. Words and spans never reach over a special token; the last one that
is selected may be cut at its end, so that the count is exact. It may follow a schedule: a row's
share is then a function of its position too, whose step is position // samples a step.

`mask_sampling = "google"` draws tokens with replacement, as google-research/electra does: a
position may come twice and then holds two of the row's k slots.

Shapes: B rows, L positions, N masked slots of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from electra_dist.config.schema import RunConfig
from electra_dist.data.fast_path import fast_path
from electra_dist.data.hashing import mix32, mix64
from electra_dist.data.store import SpecialIds
from electra_dist.runtime.keys import fold

MASK_TOKEN_SHARE = 0.85
"""Of the selected positions: 85 % become [MASK], 15 % stay, none becomes a random token."""
_MASK_BELOW = np.uint32(MASK_TOKEN_SHARE * 2**32)
_LAST = np.uint32(0xFFFFFFFF)
"""The word of what is never selected: it holds no slot of a row."""
_SELECT, _SPAN = 0, 2


@dataclass(frozen=True, kw_only=True)
class MaskRule:
    """What does not change from batch to batch."""

    seed: int
    """Key of all masks."""
    mask_prob: float
    """Share p of a row's tokens that is selected."""
    max_masked: int
    """Slots of a row: N = int((p + 0.005) L)."""
    mask_id: int
    """Id of [MASK]."""
    never: tuple[int, ...]
    """Ids that are never selected: [CLS], [SEP] and [MASK]."""
    masking: str = "token"
    """What is drawn: token, whole_word or span."""
    mean_span_length: float = 3.0
    """Tokens of a span, at least 1."""
    with_replacement: bool = False
    """Draw each slot's token by itself."""
    mask_prob_end: float | None = None
    """Share after `anneal_steps`, linear in between; None: it stays at `mask_prob`."""
    anneal_steps: int = 1
    """Steps from `mask_prob` to `mask_prob_end`."""
    samples_a_step: int = 1
    """Positions that make a step of the schedule."""

    @property
    def has_kernel(self) -> bool:
        """Whether `compiled.mask` draws by this rule."""
        return self.masking == "token" and not self.with_replacement and self.mask_prob_end is None

    @classmethod
    def of(cls, config: RunConfig, special: SpecialIds) -> MaskRule:
        """The rule of a run over a corpus with these special ids."""
        objective = config.objective
        return cls(
            seed=config.seed,
            mask_prob=objective.mask_prob,
            max_masked=config.max_masked,
            mask_id=special.mask,
            never=(special.cls, special.sep, special.mask),
            masking=objective.masking,
            mean_span_length=objective.mean_span_length,
            with_replacement=objective.mask_sampling == "google",
            mask_prob_end=objective.mask_prob_end,
            anneal_steps=objective.mask_prob_anneal_steps or 1,
            samples_a_step=config.batch.global_batch_size,
        )

    def mask_probs(self, sample_positions_B: NDArray[np.int64]) -> NDArray[np.float64]:
        """Share of each row, by its position."""
        end = self.mask_prob if self.mask_prob_end is None else self.mask_prob_end
        steps_B = np.minimum(sample_positions_B // self.samples_a_step, self.anneal_steps)
        probs_B: NDArray[np.float64] = self.mask_prob + (end - self.mask_prob) * (
            steps_B / self.anneal_steps
        )
        return probs_B


class Masks(NamedTuple):
    """The masks of a batch."""

    masked_ids_BL: NDArray[np.unsignedinteger]
    """The rows with [MASK] in place, of the type of the rows."""
    positions_BN: NDArray[np.uint16]
    """Selected positions, in random order (words and spans are, whose tokens stay together); 0 in
    unused slots."""
    weights_BN: NDArray[np.float32]
    """1 in used slots, 0 else."""


def num_selected(
    num_tokens: NDArray[np.int64], mask_prob: float | NDArray[np.float64], max_masked: int
) -> NDArray[np.int64]:
    """K = max(1, min(N, round_half_even(p n))), in float32 as google-research/electra does it."""
    rounded = np.rint(np.asarray(mask_prob, np.float32) * num_tokens.astype(np.float32))
    selected: NDArray[np.int64] = np.clip(rounded.astype(np.int64), 1, max_masked)
    return selected


def mask_rows(
    input_ids_BL: NDArray[np.unsignedinteger],
    num_tokens_B: NDArray[np.int64],
    sample_positions_B: NDArray[np.int64],
    rule: MaskRule,
    word_start_BL: NDArray[np.bool_] | None = None,
) -> Masks:
    """Select a fixed count of positions a row, uniformly; mask 85 % of them.

    Args:
        input_ids_BL: original rows; what lies beyond a row's tokens is never selected.
        num_tokens_B: real tokens of each row, [CLS] and [SEP] included.
        sample_positions_B: global sample positions, which key the draws.
        rule: probability, slots and special ids, and what is drawn.
        word_start_BL: True where a token starts a word; only `whole_word` reads it.
    """
    batch, length = input_ids_BL.shape
    num_slots = min(rule.max_masked, length)
    tables = _tables(length, num_slots, rule.mask_prob)
    if rule.has_kernel and fast_path.is_on(batch):
        masks = _compiled(input_ids_BL, num_tokens_B, sample_positions_B, rule, tables)
        if masks is not None:
            return masks
    excluded_BL = tables.beyond_NL.take(num_tokens_B, axis=0)
    for never in rule.never:
        excluded_BL |= input_ids_BL == never

    # One draw a token to select by, then one a slot to keep by: drawn at once, as the price of a
    # batch is mostly that of calling numpy.
    draws = _draws(rule.seed, _SELECT, sample_positions_B, length + num_slots)
    if rule.with_replacement:
        words_BN = _independent(draws[:, :num_slots], excluded_BL, tables.slots_L)
    else:
        # Random high bits over the slot's own number: sorting the words sorts the slots at random,
        # with no argsort; numpy sorts 32-bit words with SIMD, 128 of them in 0.15 us. 24 random
        # bits at L = 128, 22 at 512.
        words_BL = draws[:, :length] & ~tables.slot_mask
        if rule.masking != "token":
            starts_BL = _group_starts(~excluded_BL, sample_positions_B, rule, word_start_BL)
            # All tokens of a group have the random bits of its first, so they stay together.
            first_slot_BL = np.maximum.accumulate(np.where(starts_BL, np.arange(length), 0), axis=1)
            words_BL = np.take_along_axis(words_BL, first_slot_BL, axis=1)
        words_BL |= tables.slots_L
        np.copyto(words_BL, _LAST, where=excluded_BL)
        words_BL.sort(axis=1)
        words_BN = words_BL[:, :num_slots]

    if rule.mask_prob_end is None:
        used_BN = tables.used_NN.take(num_tokens_B, axis=0)
    else:
        probs_B = rule.mask_probs(sample_positions_B)
        used_BN = np.arange(num_slots) < num_selected(num_tokens_B, probs_B, num_slots)[:, None]
    # A row with too few candidates has excluded slots among its first ones: they are not used.
    used_BN &= words_BN != _LAST
    positions_BN = (words_BN & tables.slot_mask) * used_BN
    becomes_mask_BN = draws[:, length:] < _MASK_BELOW
    becomes_mask_BN &= used_BN
    # What is kept writes to a place behind the rows: cheaper than picking the others out.
    places_BN = positions_BN + (np.arange(batch) * length)[:, None]
    places_BN = np.where(becomes_mask_BN, places_BN, batch * length)
    masked_ids = np.empty(batch * length + 1, input_ids_BL.dtype)
    masked_ids[:-1] = input_ids_BL.reshape(-1)
    masked_ids[places_BN] = rule.mask_id
    return Masks(
        masked_ids[:-1].reshape(batch, length),
        positions_BN.astype(np.uint16),
        used_BN.astype(np.float32),
    )


def _compiled(
    input_ids_BL: NDArray[np.unsignedinteger],
    num_tokens_B: NDArray[np.int64],
    sample_positions_B: NDArray[np.int64],
    rule: MaskRule,
    tables: _Tables,
) -> Masks | None:
    """The same masks from machine code; None where it cannot give them."""
    batch, num_slots = len(input_ids_BL), tables.used_NN.shape[1]
    masks = Masks(
        np.empty(input_ids_BL.shape, input_ids_BL.dtype),
        np.empty((batch, num_slots), np.uint16),
        np.empty((batch, num_slots), np.float32),
    )
    done = fast_path.run(
        "mask",
        np.ascontiguousarray(input_ids_BL),
        num_tokens_B.astype(np.int64, copy=False),
        sample_positions_B.astype(np.int64, copy=False),
        np.uint64(fold(rule.seed, _SELECT)),
        tables.num_selected_N,
        tables.slot_mask,
        _MASK_BELOW,
        np.array(rule.never, np.uint32),
        input_ids_BL.dtype.type(rule.mask_id),
        *masks,
    )
    return masks if done else None


class _Tables(NamedTuple):
    """What depends on the shape and the rule only; rows of tables are by number of real tokens."""

    slots_L: NDArray[np.uint32]
    slot_mask: np.uint32
    """The low bits of a word, which hold the slot."""
    beyond_NL: NDArray[np.bool_]
    """[L + 1, L]: what lies beyond the tokens of a row."""
    used_NN: NDArray[np.bool_]
    """[L + 1, N]: slots that a row may use."""
    num_selected_N: NDArray[np.int64]
    """[L + 1]: how many those are."""


@lru_cache(maxsize=8)
def _tables(length: int, num_slots: int, mask_prob: float) -> _Tables:
    num_tokens = np.arange(length + 1)
    selected = num_selected(num_tokens, mask_prob, num_slots)
    return _Tables(
        slots_L=np.arange(length, dtype=np.uint32),
        slot_mask=np.uint32((1 << length.bit_length()) - 1),
        beyond_NL=np.arange(length) >= num_tokens[:, None],
        used_NN=np.arange(num_slots) < selected[:, None],
        num_selected_N=selected,
    )


def _independent(
    draws_BN: NDArray[np.uint32], excluded_BL: NDArray[np.bool_], slots_L: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """A candidate for each slot, with replacement; `_LAST` in rows that have none."""
    ranked_BL = np.where(excluded_BL, _LAST, slots_L)
    ranked_BL.sort(axis=1)  # a row's candidates, and then what is none
    counts_B1 = (ranked_BL != _LAST).sum(axis=1, dtype=np.uint64)[:, None]
    ranks_BN = (draws_BN.astype(np.uint64) * counts_B1) >> np.uint64(32)
    return np.take_along_axis(ranked_BL, ranks_BN.astype(np.int64), axis=1)


def _group_starts(
    candidates_BL: NDArray[np.bool_],
    sample_positions_B: NDArray[np.int64],
    rule: MaskRule,
    word_start_BL: NDArray[np.bool_] | None,
) -> NDArray[np.bool_]:
    """Where a word or span starts: also at and behind what is no candidate, and at slot 0."""
    if rule.masking == "span":
        highest = np.uint32(max(1, round(2**32 / rule.mean_span_length)) - 1)
        draws_BL = _draws(rule.seed, _SPAN, sample_positions_B, candidates_BL.shape[1])
        starts_BL = draws_BL <= highest
    else:
        assert word_start_BL is not None, "whole_word needs the word starts of the rows"
        starts_BL = word_start_BL.copy()
    starts_BL |= ~candidates_BL
    starts_BL[:, 1:] |= ~candidates_BL[:, :-1]
    starts_BL[:, 0] = True
    return starts_BL


def _draws(
    seed: int, site: int, sample_positions_B: NDArray[np.int64], num_slots: int
) -> NDArray[np.uint32]:
    """Uniform 32-bit numbers [B, num_slots] keyed by (seed, site, sample position, slot)."""
    keys_B = mix64(sample_positions_B.astype(np.uint64) ^ np.uint64(fold(seed, site)))
    start_B1 = (keys_B >> np.uint64(32)).astype(np.uint32)[:, None]
    stride_B1 = (keys_B.astype(np.uint32) | np.uint32(1))[:, None]
    slots_N = np.arange(num_slots, dtype=np.uint32)
    return mix32(np.add(start_B1, stride_B1 * slots_N, dtype=np.uint32))
