"""What ZeRO-3 gathers at once and keeps between the passes, on a model of two layers."""

from dataclasses import replace

import pytest

from electra_dist.config.memory import gathered_at_once
from electra_dist.config.schema import RunConfig
from electra_dist.config.zero import (
    ZeroSettings,
    gathered_together,
    kept_for_backward,
    layers_are_leaves,
)

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
    assert list(gathered_together(SIZES, leaves=True).values()) == [
        NAMES[:1],
        NAMES[1:3],
        NAMES[3:5],
        NAMES[5:7],
        NAMES[7:],
    ]

    assert len(gathered_together(SIZES, leaves=False)) == 7


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


def test_layers_that_both_towers_run_are_no_leaves() -> None:
    config = RunConfig()
    assert layers_are_leaves(config)
    one = replace(config, model=replace(config.model, untied_generator=False))
    assert not layers_are_leaves(one)
    # Product by product what follows is passed twice, on the way to the end and back.
    assert kept_for_backward(SIZES, 241, leaves=False) == set(NAMES[4:])
    assert kept_for_backward(SIZES, 240, leaves=False) == set(NAMES[5:])


def test_beside_what_is_kept_two_modules_are_whole_at_once() -> None:
    early = ZeroSettings(max_reuse_distance=20, parameter_persistence_threshold=0)
    assert gathered_at_once(SIZES, early) == 10 + 800 + 700
    persistent = ZeroSettings(max_reuse_distance=20, parameter_persistence_threshold=399)
    assert gathered_at_once(SIZES, persistent) == 10 + 110 + 600 + 800 + 400
    one_more = ZeroSettings(max_reuse_distance=20, parameter_persistence_threshold=400)
    assert gathered_at_once(SIZES, one_more) == 10 + 110 + 600 + 800 + 800
    assert gathered_at_once(SIZES, ZeroSettings()) == sum(SIZES.values())
