from dataclasses import fields, is_dataclass, replace
from typing import Any, get_type_hints

import pytest

from electra_dist.config import schema
from electra_dist.config.changes import flatten
from electra_dist.config.docs import field_docs, knobs
from electra_dist.config.files import from_dict
from electra_dist.config.schema import RunConfig
from electra_dist.errors import UserError

SECTIONS = [kind for kind in vars(schema).values() if isinstance(kind, type) and is_dataclass(kind)]
INF, NAN = float("inf"), float("nan")

# What must be above 0, with a value that is not.
POSITIVE = {
    "model": "num_layers hidden_size embedding_size generator_num_layers generator_hidden_size "
    "vocab_size max_position_embeddings type_vocab_size layer_norm_eps initializer_range "
    "pad_vocab_to_multiple_of rope_theta local_rope_theta local_attention_window "
    "global_attention_every",
    "objective": "mask_prob mask_prob_end mask_prob_anneal_steps temperature temperature_end "
    "temperature_anneal_steps",
    "data": "shuffle_block_size shuffle_window_blocks num_lanes",
    "batch": "global_batch_size micro_batch_size",
    "optim": "learning_rate eps clip_norm",
    "schedule": "num_steps power stop_step",
    "engine": "timeout_seconds threads_per_rank",
    "checkpoint": "every_steps keep_last",
    "resilience": "commit_timeout_seconds spike_deviations max_rollbacks compare_replicas_every "
    "min_world_size term_grace_seconds end_margin_seconds hang_floor_seconds hang_factor "
    "hang_start_up_seconds straggler_every",
    "metrics": "log_every eval_every eval_num_samples",
}
SHARES = {
    "model": "hidden_dropout attention_dropout",
    "objective": "mask_prob mask_prob_end",
    "optim": "beta1 beta2 weight_decay",
}
IMPOSSIBLE: list[tuple[str, Any, str]] = [
    *(
        (f"{s}.{n}", v, "positive")
        for s, names in POSITIVE.items()
        for n in names.split()
        for v in (0, -1)
    ),
    *(
        (f"{s}.{n}", v, "0.1 for 10 %")
        for s, names in SHARES.items()
        for n in names.split()
        for v in (1.0, 1.5)
    ),
    *((f"{s}.{n}", -0.1, "") for s, names in SHARES.items() for n in names.split()),
    ("optim.learning_rate", INF, "positive number"),
    ("engine.timeout_seconds", NAN, "positive number"),
    ("optim.beta1", NAN, "0.1 for 10 %"),
    ("objective.gen_weight", -1.0, "0 to turn it off"),
    ("objective.disc_weight", INF, "0 to turn it off"),
    ("model.hidden_size", 100, "use 128"),
    ("model.generator_hidden_size", 65, "use 64"),
    ("data.sequence_length", 7, "128 and 512"),
    ("data.prefetch_steps", -1, "training thread"),
    ("data.cache_bytes", 0, "no limit"),
    ("schedule.warmup_steps", -1, "1 %"),
    ("schedule.warmup_steps", 1_000_000, "use 10000"),
    ("seed", -1, "whole number"),
    ("seed", 2**63, "whole number"),
]


def nested(name: str, value: object) -> dict[str, Any]:
    section, _, field = name.rpartition(".")
    return {section: {field: value}} if section else {field: value}


@pytest.mark.parametrize(("name", "value", "remedy"), IMPOSSIBLE)
def test_an_impossible_value_is_refused_in_one_sentence(
    name: str, value: float, remedy: str
) -> None:
    kind: Any = RunConfig
    for part in name.split("."):
        kind = get_type_hints(kind)[part]
    with pytest.raises(UserError) as caught:
        from_dict(nested(name, float(value) if kind in (float, float | None) else value))
    message = str(caught.value)
    assert name in message
    assert remedy in message
    assert "\n" not in message
    assert f"= {value!r}" in message or f"= {float(value)!r}" in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"blend": {"x": 0}}, r"data\.blend 'x' = 0: .*at least 1; leave a corpus out"),
        ({"blend": {"x": 65_000, "y": 537}}, "more than 65,536; divide them all"),
        ({"blend": {"x": 1}, "corpus": "y"}, "beside data.corpus = 'y'; give one of the two"),
        ({"skips": [[3, 3]]}, r"data\.skips = \[\[3, 3\]\]: \[3, 3\) is empty"),
        ({"skips": [[-3, 3]]}, "below 0"),
        ({"skips": [[3, 8], [7, 9]]}, r"\[7, 9\) is .*not behind the interval before it"),
        ({"skips": [[7, 9], [0, 2]]}, "give intervals .* in order"),
    ],
)
def test_blends_and_skips_that_cannot_be_are_refused(data: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_dict({"data": data})


def test_a_step_must_be_whole_micro_batches() -> None:
    with pytest.raises(
        UserError, match=r"batch\.global_batch_size = 100 .*multiple of .* = 24"
    ) as caught:
        schema.BatchConfig(global_batch_size=100, micro_batch_size=24)
    # Both remedies work as they are said.
    assert "batch.micro_batch_size to 20" in str(caught.value)
    assert "batch.global_batch_size to 120" in str(caught.value)
    assert schema.BatchConfig(global_batch_size=100, micro_batch_size=20).num_micro_batches == 5
    assert schema.BatchConfig(global_batch_size=120, micro_batch_size=24).num_micro_batches == 5


def test_a_row_must_fit_the_position_table() -> None:
    with pytest.raises(UserError, match=r"data\.sequence_length = 1024.*raise .* to 1024"):
        from_dict({"data": {"sequence_length": 1024}})
    long = from_dict(
        {"data": {"sequence_length": 1024}, "model": {"max_position_embeddings": 1024}}
    )
    assert long.max_masked == 158  # int((0.15 + 0.005) x 1024)


def test_combinations_that_compute_wrongly_are_refused() -> None:
    for precision in ("bf16", "fp16"):
        words = rf"engine\.precision = '{precision}'.*zero_stage 1, 2 or 3 for {precision}"
        with pytest.raises(UserError, match=words):
            schema.EngineConfig(zero_stage=0, precision=precision)  # type: ignore[arg-type]
        schema.EngineConfig(kind="reference", zero_stage=0, precision=precision)  # type: ignore[arg-type]


def test_the_last_step_is_the_earlier_of_two() -> None:
    schedule = schema.ScheduleConfig(num_steps=100, warmup_steps=0)
    assert schedule.last_step == 100
    assert replace(schedule, stop_step=60).last_step == 60
    assert replace(schedule, stop_step=600).last_step == 100


def test_a_row_has_at_least_one_masked_slot() -> None:
    assert (
        from_dict({"data": {"sequence_length": 8}, "objective": {"mask_prob": 0.01}}).max_masked
        == 1
    )


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_knob_and_every_section_says_what_it_is(kind: type) -> None:
    assert kind.__doc__
    docs = field_docs(kind)
    assert docs.keys() == {field.name for field in fields(kind)}
    for name, words in docs.items():
        assert len(words) > 5, name
        assert words.endswith("."), name
        assert "\n" not in words, f"{name}: the help shows one line a knob"


def test_all_sections_are_part_of_a_run() -> None:
    hints = get_type_hints(RunConfig)
    assert set(SECTIONS) - {RunConfig} == {kind for kind in hints.values() if is_dataclass(kind)}


def test_config_docs_mentions_every_knob_with_type_default_and_words() -> None:
    text = knobs()
    lines = [line.strip() for line in text.splitlines()]
    for name, default in flatten(RunConfig()).items():
        section, _, field = name.rpartition(".")
        owner = get_type_hints(RunConfig)[section] if section else RunConfig
        entry = next(line for line in lines if line.startswith(f"--{name} "))
        assert entry.endswith(f"; {default!r})")
        assert field_docs(owner)[field] in lines
    assert "--engine.zero_stage  (one of 0, 1, 2, 3; 2)" in lines
    assert "--model.vocab_size  (int or None; None)" in lines
    assert sum(line.startswith("--") for line in lines) == len(flatten(RunConfig()))
