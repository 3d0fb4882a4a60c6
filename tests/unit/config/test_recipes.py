import pytest

from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import RunConfig

# The paper's appendix and google-research/electra, one column a published model. Layers, hidden
# size, heads, ffn; embedding size; the generator's hidden size, layers, heads, ffn; mask_prob,
# masked slots; length, batch, rate; steps.
SIZES = {
    "small": (12, 256, 4, 1024, 128, 64, 12, 1, 256, 0.15, 19, 128, 128, 5e-4, 1_000_000),
    "small_pp": (12, 256, 4, 1024, 128, 256, 12, 4, 1024, 0.15, 79, 512, 128, 5e-4, 1_000_000),
    "base": (12, 768, 12, 3072, 768, 256, 12, 4, 1024, 0.15, 79, 512, 256, 2e-4, 766_000),
    "large": (24, 1024, 16, 4096, 1024, 256, 24, 4, 1024, 0.25, 130, 512, 2048, 2e-4, 400_000),
}


def sizes(run: RunConfig) -> tuple[float, ...]:
    model = run.model
    return (
        model.num_layers,
        model.hidden_size,
        model.num_heads,
        model.ffn_size,
        model.embedding_size,
        model.generator_hidden_size,
        model.generator_num_layers,
        model.generator_num_heads,
        model.generator_ffn_size,
        run.objective.mask_prob,
        run.max_masked,
        run.data.sequence_length,
        run.batch.global_batch_size,
        run.optim.learning_rate,
        run.schedule.num_steps,
    )


@pytest.mark.parametrize("name", SIZES)
def test_a_published_recipe_has_the_published_sizes(name: str) -> None:
    assert sizes(RECIPES[name]()) == SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_what_all_published_models_have_in_common(name: str) -> None:
    run = RECIPES[name]()
    assert run.recipe == name
    assert (run.schedule.warmup_steps, run.schedule.power) == (10_000, 1.0)
    assert run.schedule.stop_step is None
    optim = run.optim
    assert (optim.weight_decay, optim.beta1, optim.beta2, optim.eps) == (0.01, 0.9, 0.999, 1e-6)
    assert optim.clip_norm == 1.0
    objective = run.objective
    assert objective.name == "electra"
    assert (objective.gen_weight, objective.disc_weight, objective.temperature) == (1.0, 50.0, 1.0)
    assert (run.model.hidden_dropout, run.model.attention_dropout) == (0.1, 0.1)
    assert (run.model.type_vocab_size, run.model.max_position_embeddings) == (2, 512)
    assert (run.model.layer_norm_eps, run.model.initializer_range) == (1e-12, 0.02)
    assert run.model.vocab_size is None  # the corpus says it


def test_tiny_is_for_a_laptop() -> None:
    run = RECIPES["tiny"]()
    model = run.model
    assert (model.num_layers, model.hidden_size, model.num_heads, model.ffn_size) == (
        *(4, 128, 2, 512),
    )
    assert (model.embedding_size, model.generator_hidden_size) == (64, 64)
    assert run.data.sequence_length == 128
    assert run.schedule.num_steps <= 1000


def test_the_default_config_is_small() -> None:
    assert RunConfig() == RECIPES["small"]()


def test_every_recipe_says_its_name_and_makes_a_fresh_equal_value() -> None:
    for name, recipe in RECIPES.items():
        assert recipe().recipe == name
        assert recipe() == recipe()
        assert recipe.__doc__
