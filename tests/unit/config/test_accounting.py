import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from electra_dist.config.accounting import (
    OBJECTIVES_OF_CAUSAL_TOWERS,
    OBJECTIVES_OF_ONE_TOWER,
    OBJECTIVES_WITHOUT_GENERATOR,
    is_decayed,
    num_parameters,
    padded_shapes,
    parameter_shapes,
    vocab_size,
)
from electra_dist.config.accounting_modern import attended_pairs
from electra_dist.config.flops import flops_of_row, google_flops_of_row, train_flops
from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import (
    BatchConfig,
    ModelConfig,
    ObjectiveConfig,
    RunConfig,
    ScheduleConfig,
)
from electra_dist.engine.optim import decay_groups
from electra_dist.model.batch import Batch
from electra_dist.model.electra import JointElectra
from electra_dist.model.modern import local_mask
from electra_dist.model.objectives import OBJECTIVES
from electra_dist.model.padding import stored_shapes
from tests.variants import SPECIAL_IDS, VARIANTS, variant_of


def with_vocabulary(config: RunConfig) -> RunConfig:
    return replace(config, model=replace(config.model, vocab_size=vocab_size(config)))


def built(config: RunConfig) -> JointElectra:
    """The real module, without its memory."""
    with torch.device("meta"):
        return JointElectra(with_vocabulary(config))


@pytest.mark.parametrize(
    ("recipe", "joint", "discriminator"),
    [
        ("small", 14_196_219, 13_549_057),
        ("small_pp", 23_122_875, 13_549_057),
        ("base", 119_386_427, 109_483_009),
        ("large", 354_655_291, 335_142_913),
    ],
)
def test_parameters_are_those_of_the_paper(recipe: str, joint: int, discriminator: int) -> None:
    assert num_parameters(RECIPES[recipe]()) == {"joint": joint, "discriminator": discriminator}


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_shapes_are_those_of_the_built_module_in_its_order(recipe: str, variant: str) -> None:
    config = variant_of(RECIPES[recipe](), variant)
    model = built(config)
    shapes = stored_shapes(model)
    assert list(parameter_shapes(config).items()) == list(shapes.items())
    product = model.discriminator or model.generator
    # A difference from shared tables is merged into them in the product.
    merged = [math.prod(s) for n, s in stored_shapes(product).items() if ".difference." not in n]
    assert num_parameters(config) == {
        "joint": sum(map(math.prod, shapes.values())),
        "discriminator": sum(merged),
    }


def test_parameters_of_other_towers_are_those_that_their_sizes_give() -> None:
    small, V, P, T, E, D, G = RECIPES["small"](), 30522, 512, 2, 128, 256, 64
    joint, product = num_parameters(small).values()

    def of(variant: str) -> tuple[int, int]:
        counts = num_parameters(variant_of(small, variant))
        return counts["joint"], counts["discriminator"]

    tables = (V + P + T) * E + 2 * E
    assert of("disentangled") == (joint + tables, product)
    # Own tables of width G, no projection from E to G, a head that leads to G and not to E.
    own = (V + P + T) * G + 2 * G - (E * G + G) + (G * G + 3 * G) - (G * E + 3 * E)
    assert of("untied tables") == (joint + own, product)
    # The transformer, with the head that a generator as wide as it has.
    assert of("one transformer") == (product + D * E + 3 * E + V, product)
    assert of("uniform generator") == (product, product)
    # One tower and its projection more, and a head that reads both.
    layer = 4 * (G * G + G) + 2 * 4 * G * G + 4 * G + G + 4 * G
    assert of("electric") == (joint + 12 * layer + E * G + G + G * E, product)


def modern(config: RunConfig) -> RunConfig:
    return replace(config, model=replace(config.model, backbone="modern"))


@pytest.mark.parametrize("recipe", ["small", "base", "large"])
def test_modern_has_about_as_many_parameters(recipe: str) -> None:
    plain = RECIPES[recipe]()
    sizes = [num_parameters(one)["discriminator"] for one in (plain, modern(plain))]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)


@given(length=st.integers(1, 40), window=st.integers(1, 50), every=st.integers(1, 4))
def test_local_attention_counts_the_pairs_that_its_mask_allows(
    length: int, window: int, every: int
) -> None:
    model = ModelConfig(
        backbone="modern", local_attention_window=window, global_attention_every=every
    )
    near = local_mask(None, None, length, window, torch.device("cpu"))
    pairs = length * length if near is None else int(near.sum())
    for number in range(5):
        wanted = pairs if number % every else length * length
        assert attended_pairs(model, number, length) == wanted


@pytest.mark.parametrize(("vocabulary", "multiple", "rows"), [(90, 64, 128), (128, 64, 128)])
def test_padding_is_in_memory_and_in_no_count(vocabulary: int, multiple: int, rows: int) -> None:
    small = RECIPES["small"]()
    model = replace(small.model, vocab_size=vocabulary, pad_vocab_to_multiple_of=multiple)
    config = replace(small, model=model)
    module = built(config)
    assert module.embeddings.word.weight.shape == (rows, 128)
    assert padded_shapes(config) == {n: tuple(p.shape) for n, p in module.named_parameters()}
    assert parameter_shapes(config)["embeddings.word.weight"] == (vocabulary, 128)
    plain = replace(config, model=replace(model, pad_vocab_to_multiple_of=1))
    assert num_parameters(config) == num_parameters(plain)
    assert flops_of_row(config) == flops_of_row(plain)


@given(
    num_layers=st.integers(1, 3),
    width=st.sampled_from([8, 64, 128]),
    embedding=st.sampled_from([8, 64, 128]),
    generator=st.sampled_from([8, 64]),
    vocabulary=st.integers(5, 300),
)
def test_shapes_of_any_size_are_those_of_the_built_module(
    num_layers: int, width: int, embedding: int, generator: int, vocabulary: int
) -> None:
    model = ModelConfig(
        num_layers=num_layers,
        hidden_size=width,
        embedding_size=embedding,
        generator_hidden_size=generator,
        generator_num_layers=1,
        vocab_size=vocabulary,
    )
    config = RunConfig(model=model)
    shapes = stored_shapes(built(config))
    assert list(parameter_shapes(config).items()) == list(shapes.items())


def test_decay_is_told_by_name_as_the_optimizer_does() -> None:
    model = built(RECIPES["tiny"]())
    decayed = {id(p) for p in decay_groups(model, 0.01)[0]["params"]}
    assert {n for n, p in model.named_parameters() if id(p) in decayed} == {
        n for n in parameter_shapes(RECIPES["tiny"]()) if is_decayed(n)
    }


def test_objectives_of_one_tower_are_those_without_a_discriminator() -> None:
    single = {name for name, one in OBJECTIVES.items() if not one.has_discriminator}
    assert single == set(OBJECTIVES_OF_ONE_TOWER)
    alone = {name for name, one in OBJECTIVES.items() if one.generator is None}
    assert alone == set(OBJECTIVES_WITHOUT_GENERATOR)
    causal = {name for name, one in OBJECTIVES.items() if one.generator == "two_towers"}
    assert causal == set(OBJECTIVES_OF_CAUSAL_TOWERS)


@pytest.mark.parametrize(
    ("recipe", "objective", "num_steps", "flops"),
    [
        ("small", "electra", 1_000_000, "1.2937e+18"),
        ("base", "electra", 766_000, "6.4245e+19"),
        ("large", "electra", 400_000, "7.1176e+20"),
        ("large", "electra", 1_750_000, "3.1140e+21"),
        ("small", "mlm", 1_450_000, "1.4187e+18"),
        ("base", "mlm", 1_000_000, "6.4283e+19"),
    ],
)
def test_flops_are_those_that_google_publishes(
    recipe: str, objective: str, num_steps: int, flops: str
) -> None:
    config = replace(
        RECIPES[recipe](),
        objective=ObjectiveConfig(name=objective),
        schedule=ScheduleConfig(num_steps=num_steps),
    )
    assert f"{train_flops(config)['google']:.4e}" == flops


@pytest.mark.parametrize(
    ("recipe", "variant"), [("small", "electra"), *(("tiny", variant) for variant in VARIANTS)]
)
def test_usual_flops_are_what_torch_counts_on_the_module(recipe: str, variant: str) -> None:
    config = variant_of(RECIPES[recipe](), variant)
    config = with_vocabulary(replace(config, batch=BatchConfig(micro_batch_size=1)))
    config = replace(config, model=replace(config.model, pad_vocab_to_multiple_of=1))
    model = JointElectra(config, SPECIAL_IDS)
    # torch counts fused attention on CUDA only; a pass without dropout would take it.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(full_row(config)).total.backward()
    assert counter.get_total_flops() == flops_of_row(config)


def full_row(config: RunConfig) -> Batch:
    """One row without padding whose masked slots are all used."""
    length, slots = config.data.sequence_length, config.max_masked
    ids_BL = torch.arange(length).unsqueeze(0) + 5
    return Batch(
        input_ids_BL=ids_BL,
        masked_ids_BL=ids_BL,
        token_type_ids_BL=torch.zeros_like(ids_BL),
        attention_mask_BL=None,
        masked_positions_BN=torch.arange(slots).unsqueeze(0),
        masked_weights_BN=torch.ones(1, slots),
        uniforms_BN=torch.full((1, slots), 0.5),
    )


def test_flops_grow_with_rows_and_steps_alone() -> None:
    config = RECIPES["base"]()
    longer = replace(config, schedule=ScheduleConfig(num_steps=2 * config.schedule.num_steps))
    for convention, flops in train_flops(config).items():
        assert train_flops(longer)[convention] == pytest.approx(2 * flops)
    assert train_flops(config)["google"] == google_flops_of_row(config) * 256 * 766_000
