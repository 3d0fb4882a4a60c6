"""What ZeRO-3 gathers at once and keeps between the passes, on a model of two layers."""

import pytest

from electra_dist.config.memory import gathered_at_once
from electra_dist.config.zero import ZeroSettings, gathered_together, kept_for_backward

SIZES = {
    "embeddings.word.weight": 800,
    "discriminator.encoder.layers.0.qkv.weight": 300,
    "discriminator.encoder.layers.0.ffn_in.weight": 400,
    "discriminator.encoder.layers.10.qkv.weight": 300,
    "discriminator.encoder.layers.10.ffn_in.weight": 400,
    "discriminator.head.dense.weight": 100,
    "discriminator.head.dense.bias": 10,
    "discriminator.head.out.weight": 10,
}
NAMES = list(SIZES)


def test_a_layer_is_gathered_as_a_whole_and_other_modules_each_by_themselves() -> None:
    assert list(gathered_together(SIZES).values()) == [
        NAMES[:1],
        NAMES[1:3],
        NAMES[3:5],
        NAMES[5:7],
        NAMES[7:],
    ]


@pytest.mark.parametrize(
    ("distance", "first_kept"),
    [
        (1, 7),  # the last module: nothing lies between its two uses
        (20, 7),
        (21, 5),  # out, twice
        (120, 5),
        (121, 3),  # a layer: what follows it, once
        (821, 1),
        (3040, 1),
        (3041, 0),
    ],
)
def test_what_is_used_again_within_the_distance_is_kept(distance: int, first_kept: int) -> None:
    assert kept_for_backward(SIZES, distance) == set(NAMES[first_kept:])


def test_beside_what_is_kept_two_modules_are_whole_at_once() -> None:
    early = ZeroSettings(max_reuse_distance=20, parameter_persistence_threshold=0)
    assert gathered_at_once(SIZES, early) == 10 + 800 + 700
    persistent = ZeroSettings(max_reuse_distance=20, parameter_persistence_threshold=400)
    assert gathered_at_once(SIZES, persistent) == 10 + 110 + 600 + 800 + 400
    assert gathered_at_once(SIZES, ZeroSettings()) == sum(SIZES.values())
