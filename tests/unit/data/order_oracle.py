"""The order again, number by number in plain Python, from what the design record says."""

from fractions import Fraction

from electra_dist.data.order import Order, Skips
from electra_dist.runtime.keys import fold

MASK64 = 2**64 - 1


def unskipped(position: int, skips: Skips) -> int:
    """Walk over all positions, skipped ones too, until as many used ones have been passed."""
    real = 0
    for first, last in skips:
        if position < first - real:
            break
        position -= first - real
        real = last
    return real + position


def mix(value: int) -> int:
    value = value + 0x9E3779B97F4A7C15 & MASK64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK64
    return value ^ value >> 31


def permute(index: int, size: int, key: int) -> int:
    bits = max(2, (size - 1).bit_length())
    low_bits, high_bits = bits // 2, bits - bits // 2
    while size > 1:
        low, high = index % 2**low_bits, index >> low_bits
        for number in range(0, 6, 2):
            high ^= mix(low ^ mix(number + key & MASK64)) % 2**high_bits
            low ^= mix(high ^ mix(number + 1 + key & MASK64)) % 2**low_bits
        index = (high << low_bits) + low
        if index < size:
            break
    return index


def epoch_row(seed: int, size: int, block: int, window_blocks: int, position: int) -> int:
    epoch, index = divmod(position, size)
    num_blocks, tail = divmod(size, block)
    num_windows = -(-num_blocks // window_blocks)
    tail_window = fold(seed, epoch, 3) % (num_windows + 1)
    tail_start = min(tail_window * window_blocks, num_blocks) * block
    if tail_start <= index < tail_start + tail:
        return num_blocks * block + permute(index - tail_start, tail, fold(seed, epoch, 2))
    if index >= tail_start + tail:
        index -= tail
    window = index // (window_blocks * block)
    start = window * window_blocks * block
    window_size = min(window_blocks * block, num_blocks * block - start)
    slot, offset = divmod(
        start + permute(index - start, window_size, fold(seed, epoch, 1, window)), block
    )
    return permute(slot, num_blocks, fold(seed, epoch, 0)) * block + offset


def pattern(weights: tuple[int, ...]) -> list[int]:
    """Tijdeman's rule in fractions: the most urgent of those that would not be too far ahead."""
    total = sum(weights)
    if len(weights) == 1:
        return [0] * total
    bound = 1 - Fraction(1, 2 * len(weights) - 2)
    counts = [0] * len(weights)
    found = []
    for slot in range(1, total + 1):
        shares = [Fraction(weight, total) for weight in weights]
        allowed = [
            corpus
            for corpus, share in enumerate(shares)
            if counts[corpus] < weights[corpus] and share * slot - counts[corpus] >= 1 - bound
        ]
        chosen = min(allowed, key=lambda c: ((counts[c] + bound) // shares[c], c))
        counts[chosen] += 1
        found.append(chosen)
    return found


def sample_id(order: Order, position: int) -> int:
    run, place = divmod(position, order.lane_run)
    lane, lane_position = run % order.num_lanes, run // order.num_lanes * order.lane_run + place
    slots = pattern(order.weights)
    period, slot = divmod(lane_position, len(slots))
    corpus = slots[slot]
    index = period * slots.count(corpus) + slots[:slot].count(corpus)
    size = order.sizes[corpus]
    start, end = (size * n // order.num_lanes for n in (lane, lane + 1))
    seed = fold(order.seed, corpus, lane) if corpus or lane else order.seed
    row = epoch_row(seed, end - start, order.block_size, order.window_blocks, index)
    return sum(order.sizes[:corpus]) + start + row
