import struct
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare, norm

from electra_dist.data.masking import MaskRule, Masks, mask_rows, num_selected

PAD, UNK, CLS, SEP, MASK = range(5)
NEVER = (CLS, SEP, MASK)


MASKINGS = ("token", "whole_word", "span")


def rule(
    mask_prob: float = 0.15,
    max_masked: int = 8,
    seed: int = 7,
    masking: str = "token",
    mean_span_length: float = 3.0,
) -> MaskRule:
    return MaskRule(
        seed=seed,
        mask_prob=mask_prob,
        max_masked=max_masked,
        mask_id=MASK,
        never=NEVER,
        masking=masking,
        mean_span_length=mean_span_length,
    )


def words(ids: np.ndarray, share: float = 0.5) -> np.ndarray:
    """Made-up word starts for `ids`."""
    return np.random.default_rng(0).random(ids.shape) < share


def row(num_tokens: int, length: int) -> list[int]:
    """[CLS] words [SEP] and padding; every word is another one."""
    return [CLS, *range(10, 8 + num_tokens), SEP] + [PAD] * (length - num_tokens)


def same_rows(num_rows: int, num_tokens: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row(num_tokens, length)] * num_rows), np.full(num_rows, num_tokens)


def used(masks: Masks, index: int) -> list[int]:
    return masks.positions_BN[index][masks.weights_BN[index] > 0].tolist()


def in_float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


@pytest.mark.parametrize("mask_prob", [0.15, 0.25, 0.4])
def test_the_count_is_p_times_n_rounded_half_to_even(mask_prob: float) -> None:
    lengths = list(range(2, 513))
    # As google-research/electra multiplies: a float32 with a float32, so 0.15 x 190 is a little
    # over 28.5. The product of 24 and 9 bits is exact in the float64 that is rounded here.
    products = [in_float32(in_float32(mask_prob) * n) for n in lengths]
    expected = [max(1, min(79, round(product))) for product in products]
    assert num_selected(np.array(lengths), mask_prob, 79).tolist() == expected


def test_the_count_at_length_128_is_that_of_exact_arithmetic() -> None:
    for mask_prob in ("0.15", "0.25"):
        expected = [max(1, min(19, round(Fraction(mask_prob) * n))) for n in range(2, 129)]
        assert num_selected(np.arange(2, 129), float(mask_prob), 19).tolist() == expected
    # The halves that the two ways of rounding disagree on: 4.5 and 7.5.
    assert num_selected(np.array([30, 50]), 0.15, 79).tolist() == [4, 8]


ROWS = st.integers(3, 40).flatmap(
    lambda length: st.lists(
        st.tuples(
            st.lists(st.integers(1, 9), min_size=length, max_size=length),
            st.integers(2, length),
            st.integers(0, 2**40),
        ),
        min_size=1,
        max_size=6,
    )
)


@pytest.mark.parametrize("masking", MASKINGS)
@given(ROWS, st.floats(0.01, 0.99), st.integers(1, 12), st.integers(0, 2**63 - 1))
@settings(max_examples=150, deadline=None)
def test_what_is_masked_obeys_every_rule(
    masking: str,
    rows: list[tuple[list[int], int, int]],
    mask_prob: float,
    max_masked: int,
    seed: int,
) -> None:
    ids, num_tokens, positions = (np.array(column) for column in zip(*rows, strict=True))
    original = ids.copy()
    how = rule(mask_prob, max_masked, seed, masking)
    masks = mask_rows(ids, num_tokens, positions, how, words(ids))
    np.testing.assert_array_equal(ids, original)
    counts = num_selected(num_tokens, mask_prob, min(max_masked, ids.shape[1]))
    assert masks.positions_BN.shape == (len(ids), min(max_masked, ids.shape[1]))
    for index, tokens in enumerate(ids.tolist()):
        candidates = [i for i in range(num_tokens[index]) if tokens[i] not in NEVER]
        chosen = used(masks, index)
        # A fixed count, without replacement, of candidates; fewer only where there are fewer.
        assert len(chosen) == min(counts[index], len(candidates))
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= set(candidates)
        assert masks.weights_BN[index].tolist() == sorted(masks.weights_BN[index], reverse=True)
        assert masks.positions_BN[index, len(chosen) :].tolist() == [0] * (
            masks.positions_BN.shape[1] - len(chosen)
        )
        # A selected token is [MASK] or what it was, never a random one; nothing else changes.
        for place, (before, after) in enumerate(
            zip(tokens, masks.masked_ids_BL[index].tolist(), strict=True)
        ):
            assert after == before or (place in chosen and after == MASK)


def test_unknown_words_may_be_masked() -> None:
    ids = np.array([[CLS, UNK, SEP]])
    assert used(mask_rows(ids, np.array([3]), np.array([0]), rule()), 0) == [1]


def test_rows_with_few_candidates_use_fewer_slots() -> None:
    ids = np.array([[CLS, MASK, 11, SEP, PAD], [CLS, SEP, SEP, SEP, SEP], row(5, 5)])
    masks = mask_rows(ids, np.array([4, 5, 5]), np.arange(3), rule(0.6, 4))
    assert [len(used(masks, i)) for i in range(3)] == [1, 0, 3]
    assert used(masks, 0) == [2]
    np.testing.assert_array_equal(masks.masked_ids_BL[1], ids[1])


def test_85_of_100_selected_become_mask_and_the_rest_stay() -> None:
    ids, num_tokens = same_rows(6000, 42, 48)
    masks = mask_rows(ids, num_tokens, np.arange(6000), rule())
    became = np.take_along_axis(masks.masked_ids_BL, masks.positions_BN, 1) == MASK
    selected = masks.weights_BN > 0
    assert selected.sum(axis=1).tolist() == [6] * 6000
    assert binomtest(int(became[selected].sum()), int(selected.sum()), 0.85).pvalue > 1e-4
    # Drawn for each position by itself, whatever its slot: no slot is masked more than another ...
    by_slot = became[:, :6].sum(axis=0)
    assert chisquare(by_slot).pvalue > 1e-4
    # ... and the number of kept ones in a row spreads as that of independent draws.
    kept = 6 - became[:, :6].sum(axis=1)
    assert abs(kept.var() / (6 * 0.85 * 0.15) - 1) < 0.1
    # Nor does it hang on which positions were selected: what decides that is another draw.
    for slot in range(1, 6):
        is_selected = (masks.positions_BN[:, :6] == slot).any(axis=1)
        in_slot = became[is_selected, slot]
        assert binomtest(int(in_slot.sum()), len(in_slot), 0.85).pvalue > 1e-4


def test_positions_and_pairs_of_positions_are_uniform_over_the_candidates() -> None:
    ids, num_tokens = same_rows(9000, 14, 16)
    ids[:, 5] = SEP
    masks = mask_rows(ids, num_tokens, np.arange(9000) + 10**12, rule(0.15, 2))
    candidates = [p for p in range(1, 13) if p != 5]
    chosen = masks.positions_BN[:, :2]
    counts = np.bincount(chosen.ravel(), minlength=16)
    assert counts[candidates].sum() == 18000
    assert chisquare(counts[candidates]).pvalue > 1e-4
    # Ordered pairs: slots are in random order too, so that a cut at N is as uniform as the draw.
    pairs = np.bincount(chosen[:, 0] * 16 + chosen[:, 1], minlength=256).reshape(16, 16)
    off_diagonal = [pairs[a, b] for a in candidates for b in candidates if a != b]
    assert chisquare(off_diagonal).pvalue > 1e-4


@pytest.mark.parametrize(("num_tokens", "num_selected"), [(128, 19), (61, 9)])
def test_positions_and_pairs_of_long_rows_come_as_often_as_of_a_uniform_draw(
    num_tokens: int, num_selected: int
) -> None:
    num_rows, num_candidates = 20_000, num_tokens - 2
    masks = mask_rows(*same_rows(num_rows, num_tokens, 128), np.arange(num_rows), rule(0.15, 19))
    selected = np.zeros((num_rows, 128))
    np.put_along_axis(selected, masks.positions_BN[:, :num_selected].astype(int), 1.0, axis=1)
    assert selected.sum(axis=1).tolist() == [num_selected] * num_rows
    together = (selected.T @ selected)[1 : num_tokens - 1, 1 : num_tokens - 1]
    single = num_selected / num_candidates
    pair = single * (num_selected - 1) / (num_candidates - 1)
    for share, counts in (
        (single, np.diag(together)),
        (pair, together[np.triu_indices(num_candidates, 1)]),
    ):
        # Each count is binomial by itself; together they have the sum that they must have.
        scores = (counts - num_rows * share) / np.sqrt(num_rows * share * (1 - share))
        assert abs(scores.mean()) < 1e-9
        assert abs(scores).max() < norm.isf(0.5e-4 / len(scores))
        assert abs(scores.var() - 1) < 5 * np.sqrt(2 / len(scores))


@pytest.mark.parametrize("masking", MASKINGS)
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_masks_depend_on_seed_and_position_only(masking: str, data: st.DataObject) -> None:
    ids = np.array([row(n, 24) for n in (24, 12, 20, 7, 24, 16)])
    num_tokens = np.array([24, 12, 20, 7, 24, 16])
    positions = np.array(data.draw(st.lists(st.integers(0, 2**50), min_size=6, max_size=6)))
    starts, how = words(ids), rule(0.3, masking=masking)
    whole = mask_rows(ids, num_tokens, positions, how, starts)
    picked = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=9)))
    part = mask_rows(ids[picked], num_tokens[picked], positions[picked], how, starts[picked])
    for all_rows, some_rows in zip(whole, part, strict=True):
        np.testing.assert_array_equal(all_rows[picked], some_rows)


def test_other_positions_and_other_seeds_give_other_masks() -> None:
    ids, num_tokens = same_rows(200, 128, 128)
    for masking in ("whole_word", "span"):
        found = [
            mask_rows(ids, num_tokens, np.arange(200), rule(0.15, 19, seed, masking), words(ids))
            for seed in range(2)
        ]
        assert len({tuple(row) for masks in found for row in masks.positions_BN.tolist()}) == 400
    drawn = [
        tuple(positions)
        for seed in range(5)
        for positions in mask_rows(
            ids, num_tokens, np.arange(200), rule(max_masked=19, seed=seed)
        ).positions_BN.tolist()
    ]
    assert len(set(drawn)) == 1000
    # Neighbouring rows share 19 x 19 / 126 = 2.87 of their positions, as unrelated ones do.
    shared = [len(set(a) & set(b)) for a, b in pairwise(drawn)]
    assert abs(np.mean(shared) - 19 * 19 / 126) < 0.25


def groups_of(tokens: list[int], starts: list[bool]) -> list[list[int]]:
    """Runs of places, each from a start to the next; a special token is a run of its own."""
    groups: list[list[int]] = []
    for place, token in enumerate(tokens):
        alone = token in NEVER or (place > 0 and tokens[place - 1] in NEVER)
        if place == 0 or alone or starts[place]:
            groups.append([])
        groups[-1].append(place)
    return [group for group in groups if tokens[group[0]] not in NEVER]


@given(ROWS, st.integers(0, 2**63 - 1), st.floats(0.05, 0.8))
@settings(max_examples=150, deadline=None)
def test_whole_words_are_selected_and_one_at_most_is_cut(
    rows: list[tuple[list[int], int, int]], seed: int, mask_prob: float
) -> None:
    ids, num_tokens, positions = (np.array(column) for column in zip(*rows, strict=True))
    starts = words(ids)
    how = rule(mask_prob, 12, seed, "whole_word")
    masks = mask_rows(ids, num_tokens, positions, how, starts)
    for index, number in enumerate(num_tokens.tolist()):
        left = used(masks, index)
        groups = groups_of(ids[index, :number].tolist(), starts[index].tolist())
        # In slot order: word after word, each from its first token on, until the count is reached.
        while left:
            (group,) = (group for group in groups if group[0] == left[0])
            assert left[: len(group)] == group[: len(left)]
            left = left[len(group) :]
            groups.remove(group)


def test_whole_words_are_drawn_in_the_order_of_their_first_tokens_draws() -> None:
    """The oracle: shuffle the words by the numbers that single tokens would be shuffled by."""
    ids, num_tokens = same_rows(300, 24, 24)
    starts = words(ids)
    starts[:, 22] = True
    everything = rule(0.99, 24, masking="token")
    order = mask_rows(ids, num_tokens, np.arange(300), everything).positions_BN
    masks = mask_rows(ids, num_tokens, np.arange(300), rule(0.4, 24, masking="whole_word"), starts)
    for index in range(300):
        rank = {place: i for i, place in enumerate(order[index].tolist())}
        groups = groups_of(ids[index].tolist(), starts[index].tolist())
        shuffled = sorted(groups, key=lambda group: rank[group[0]])
        expected = [place for group in shuffled for place in group][:10]
        assert used(masks, index) == expected


@pytest.mark.parametrize("mean", [1.0, 3.0, 6.0])
def test_spans_have_geometric_lengths_and_stay_between_special_tokens(mean: float) -> None:
    ids, num_tokens = same_rows(4000, 512, 512)
    ids[:, 250] = SEP
    how = rule(0.15, 79, masking="span", mean_span_length=mean)
    masks = mask_rows(ids, num_tokens, np.arange(4000), how)
    lengths = []
    for chosen in masks.positions_BN[:, :77].tolist():
        assert 250 not in chosen
        # The first span alone: the last may be cut, and the count ends in a long one more often.
        lengths.append(next(i for i in range(1, 77) if chosen[i] != chosen[i - 1] + 1))
    # 509 slots in two runs, whose first slots start a span anyway.
    assert np.mean(lengths) == pytest.approx(509 / (2 + 507 / mean), rel=0.05)
    shares = np.bincount(lengths, minlength=60)[1:60] / 4000
    expected = 1 / mean * (1 - 1 / mean) ** np.arange(59)
    np.testing.assert_allclose(shares, expected, atol=0.02)


@pytest.mark.parametrize("masking", MASKINGS)
def test_every_candidate_is_as_likely_whatever_is_drawn(masking: str) -> None:
    ids, num_tokens = same_rows(20000, 128, 128)
    how = rule(0.15, 19, masking=masking)
    masks = mask_rows(ids, num_tokens, np.arange(20000), how, words(ids))
    counts = np.bincount(masks.positions_BN.ravel(), minlength=128)[1:127]
    assert counts.sum() == 20000 * 19
    # 0.018 is the deviation of a count. The first token of a row starts a group always, and the
    # last group is cut at its end: its share is 5 % over the others.
    assert np.abs(counts / counts.mean() - 1).max() < 0.08


def with_replacement(mask_prob: float, max_masked: int, seed: int = 7) -> MaskRule:
    return replace(rule(mask_prob, max_masked, seed), with_replacement=True)


@given(ROWS, st.floats(0.01, 0.99), st.integers(1, 12), st.integers(0, 2**63 - 1))
@settings(max_examples=100, deadline=None)
def test_with_replacement_the_count_is_full_and_every_slot_holds_a_candidate(
    rows: list[tuple[list[int], int, int]], mask_prob: float, max_masked: int, seed: int
) -> None:
    ids, num_tokens, positions = (np.array(column) for column in zip(*rows, strict=True))
    how = with_replacement(mask_prob, max_masked, seed)
    masks = mask_rows(ids, num_tokens, positions, how)
    counts = num_selected(num_tokens, mask_prob, min(max_masked, ids.shape[1]))
    for index, tokens in enumerate(ids.tolist()):
        candidates = [i for i in range(num_tokens[index]) if tokens[i] not in NEVER]
        chosen = used(masks, index)
        assert len(chosen) == (counts[index] if candidates else 0)
        assert set(chosen) <= set(candidates)
        for place, (before, after) in enumerate(
            zip(tokens, masks.masked_ids_BL[index].tolist(), strict=True)
        ):
            assert after == before or (place in chosen and after == MASK)


def test_with_replacement_slots_are_drawn_apart_and_some_positions_come_twice() -> None:
    ids, num_tokens = same_rows(20_000, 128, 128)
    masks = mask_rows(ids, num_tokens, np.arange(20_000), with_replacement(0.15, 19))
    chosen = masks.positions_BN.astype(int)
    assert chisquare(np.bincount(chosen.ravel(), minlength=128)[1:127]).pvalue > 1e-4
    # Of 19 draws from 126 about 17.7 are unique: 13.8 % of a row, as google's defect has it.
    unique = np.mean([len(set(row)) for row in chosen.tolist()])
    assert unique == pytest.approx(126 * (1 - (1 - 1 / 126) ** 19), abs=0.02)
    assert unique / 128 == pytest.approx(0.138, abs=0.001)
    # Each draw becomes [MASK] by itself: one that came twice stays with 0.15 x 0.15.
    became = np.take_along_axis(masks.masked_ids_BL, chosen, 1) == MASK
    twice = (chosen[:, :, None] == chosen[:, None, :]).sum(axis=2) == 2
    assert binomtest(int(became[twice].sum()) // 2, int(twice.sum()) // 2, 0.9775).pvalue > 1e-4


@given(st.floats(0.05, 0.5), st.floats(0.05, 0.5), st.integers(1, 20), st.integers(1, 8), st.data())
@settings(max_examples=60, deadline=None)
def test_the_share_of_a_row_follows_from_its_position(
    start: float, end: float, anneal_steps: int, batch_size: int, data: st.DataObject
) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, 400), min_size=1, max_size=12)))
    num_tokens = np.array(
        data.draw(st.lists(st.integers(4, 48), min_size=len(positions), max_size=len(positions)))
    )
    ids = np.array([row(n, 48) for n in num_tokens.tolist()])
    how = replace(
        rule(start, 30), mask_prob_end=end, anneal_steps=anneal_steps, samples_a_step=batch_size
    )
    masks = mask_rows(ids, num_tokens, positions, how)
    for index, position in enumerate(positions.tolist()):
        share = min(1.0, (position // batch_size) / anneal_steps)
        mask_prob = start + (end - start) * share
        count = int(num_selected(num_tokens[index : index + 1], mask_prob, 30)[0])
        assert len(used(masks, index)) == min(count, num_tokens[index] - 2)
        # What is drawn is the same draw: a larger share goes on where a smaller one ends.
        constant = mask_rows(
            ids[[index]], num_tokens[[index]], positions[[index]], rule(0.99, 30)
        ).positions_BN[0]
        assert used(masks, index) == constant[: len(used(masks, index))].tolist()
