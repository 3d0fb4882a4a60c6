"""Configs that could be: hypothesis draws every knob."""

from dataclasses import replace
from itertools import accumulate
from typing import Any

from hypothesis import strategies as st

from electra_dist.config import schema
from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import RunConfig


def positive(largest: int) -> st.SearchStrategy[int]:
    return st.integers(1, largest)


def rates(low: float = 1e-12, high: float = 1e3) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


SHARES = st.floats(0.0, 0.999)
WIDTHS = st.one_of(st.integers(1, 64), st.integers(2, 16).map(lambda n: 64 * n))
TEXTS = st.none() | st.text(max_size=8)
MODELS = st.builds(
    schema.ModelConfig,
    num_layers=positive(48),
    hidden_size=WIDTHS,
    embedding_size=positive(1024),
    generator_num_layers=positive(48),
    generator_hidden_size=WIDTHS,
    vocab_size=st.none() | positive(10**6),
    max_position_embeddings=st.integers(512, 4096),
    type_vocab_size=positive(4),
    pad_vocab_to_multiple_of=positive(128),
    rope_theta=rates(1.0, 1e6),
    local_rope_theta=rates(1.0, 1e6),
    local_attention_window=positive(512),
    global_attention_every=positive(9),
    hidden_dropout=SHARES,
    attention_dropout=SHARES,
    layer_norm_eps=rates(),
    initializer_range=rates(),
)
# Ways of sharing that do not exclude each other.
SHARING: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {},
        {"untied_generator_embeddings": True},
        {"untied_generator": False},
        {"embedding_sharing": "gradient_disentangled"},
    ]
)


def annealed(name: str, values: st.SearchStrategy[float]) -> st.SearchStrategy[dict[str, Any]]:
    ends = st.tuples(values, positive(10**6)).map(
        lambda pair: {f"{name}_end": pair[0], f"{name}_anneal_steps": pair[1]}
    )
    return st.just({}) | ends


SAMPLING = st.tuples(
    st.fixed_dictionaries(
        {
            "temperature": rates(),
            "disallow_correct": st.booleans(),
            "sampling_dropout": st.booleans(),
        }
    ),
    annealed("temperature", rates()),
).map(lambda parts: {**parts[0], **parts[1]})
MASKS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        *({"masking": masking} for masking in ("token", "whole_word", "span")),
        {"mask_sampling": "google"},
    ]
)


def two_towers(
    name: str,
    sharing: dict[str, Any],
    sampling: dict[str, Any],
    shares: dict[str, Any],
    **values: Any,
) -> tuple[dict[str, Any], schema.ObjectiveConfig]:
    """What the objective can have of these: fields of the model, and the objective."""
    if name == "electra":
        values = {**sampling, **shares, **values}
    elif name == "electric":
        sharing = {} if "untied_generator" in sharing else sharing
    else:
        sharing, values = {}, {**shares, **values}
    masks = values.pop("masks")
    return sharing, schema.ObjectiveConfig(name=name, **masks, **values)


TOWERS = st.builds(
    two_towers,
    name=st.sampled_from(["electra", "mlm", "electric", "uniform_generator"]),
    sharing=SHARING,
    sampling=SAMPLING,
    shares=annealed("mask_prob", st.floats(0.01, 0.9)),
    masks=MASKS,
    mask_prob=st.floats(0.01, 0.9),
    mean_span_length=st.floats(1.0, 100.0),
    gen_weight=rates(0.0),
    disc_weight=rates(0.0),
)
# Lengths of gaps and of skipped intervals in turn.
SKIPS = st.lists(st.tuples(st.integers(0, 10**12), positive(10**6)), max_size=3).map(
    lambda pairs: tuple(
        (end - size, end) for (_, size), end in zip(pairs, accumulate(map(sum, pairs)), strict=True)
    )
)
CORPORA = st.one_of(
    TEXTS.map(lambda corpus: {"corpus": corpus}),
    st.dictionaries(st.text(max_size=8), positive(100), max_size=4).map(
        lambda blend: {"blend": blend}
    ),
)


def data_config(corpora: dict[str, Any], **values: Any) -> schema.DataConfig:
    return schema.DataConfig(**corpora, **values)


DATA = st.builds(
    data_config,
    corpora=CORPORA,
    num_lanes=positive(64),
    skips=SKIPS,
    sequence_length=st.integers(8, 512),
    packing=st.sampled_from(["full", "google", "packed"]),
    shuffle_block_size=positive(10**6),
    shuffle_window_blocks=positive(10**6),
    prefetch_steps=st.integers(0, 100),
    cache_dir=st.none() | TEXTS,
    cache_bytes=st.none() | positive(10**15),
)
BATCHES = st.tuples(positive(64), positive(64)).map(
    lambda sizes: schema.BatchConfig(
        global_batch_size=sizes[0] * sizes[1], micro_batch_size=sizes[0]
    )
)
SCHEDULES = st.builds(
    schema.ScheduleConfig,
    num_steps=st.integers(100, 10**7),
    warmup_steps=st.integers(0, 99),
    power=rates(),
    stop_step=st.none() | positive(10**7),
)
ENGINES = st.one_of(
    st.builds(
        schema.EngineConfig,
        kind=st.just("deepspeed"),
        zero_stage=st.sampled_from([1, 2, 3]),
        precision=st.sampled_from(["fp32", "bf16", "fp16"]),
        initial_loss_scale=st.integers(0, 32).map(lambda power: 2.0**power),
        loss_scale_window=positive(10**6),
        deepspeed_config=TEXTS,
        threads_per_rank=st.none() | positive(256),
        timeout_seconds=rates(),
        deterministic=st.booleans(),
        activation_checkpointing=st.booleans(),
    ),
    st.builds(schema.EngineConfig, kind=st.just("reference"), zero_stage=st.just(0)),
)


def run_config(
    towers: tuple[dict[str, Any], schema.ObjectiveConfig],
    model: schema.ModelConfig,
    **sections: Any,
) -> RunConfig:
    sharing, objective = towers
    return RunConfig(model=replace(model, **sharing), objective=objective, **sections)


CONFIGS = st.builds(
    run_config,
    towers=TOWERS,
    recipe=st.sampled_from(list(RECIPES)),
    seed=st.integers(0, 2**63 - 1),
    model=MODELS,
    data=DATA,
    batch=BATCHES,
    optim=st.builds(
        schema.OptimConfig,
        name=st.sampled_from(["electra_adam", "adamw", "lamb"]),
        learning_rate=rates(),
        beta1=SHARES,
        eps=rates(),
    ),
    schedule=SCHEDULES,
    engine=ENGINES,
    checkpoint=st.builds(
        schema.CheckpointConfig,
        every_steps=positive(10**6),
        keep_last=positive(100),
        asynchronous=st.booleans(),
        parity=st.booleans(),
    ),
    resilience=st.builds(
        schema.ResilienceConfig,
        commit_timeout_seconds=rates(),
        on_anomaly=st.sampled_from(["rollback", "skip", "stop"]),
        spike_deviations=st.none() | rates(),
        spike_window_steps=st.integers(8, 10**6),
        max_rollbacks=positive(10**6),
        compare_replicas_every=st.none() | positive(10**6),
        max_restarts=st.integers(0, 9),
        min_world_size=st.none() | st.integers(1, 64),
        term_grace_seconds=rates(),
        hang_floor_seconds=st.none() | rates(),
        hang_factor=rates(),
        hang_start_up_seconds=rates(),
        straggler_every=st.none() | positive(10**6),
        straggler_ratio=st.floats(1.1, 10.0),
        end_margin_seconds=rates(),
    ),
    metrics=st.builds(schema.MetricsConfig, log_every=positive(1000), tensorboard=st.booleans()),
)
