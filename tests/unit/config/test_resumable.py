from typing import Any

import pytest

from electra_dist.config import changes, files
from electra_dist.config.schema import RunConfig

# Another possible value for every knob of the small recipe; a new knob needs one too.
OTHER: dict[str, Any] = {
    "recipe": "tiny",
    "seed": 1,
    "model.backbone": "modern",
    "model.num_layers": 6,
    "model.hidden_size": 128,
    "model.embedding_size": 64,
    "model.generator_num_layers": 6,
    "model.generator_hidden_size": 128,
    "model.untied_generator": False,
    "model.untied_generator_embeddings": True,
    "model.embedding_sharing": "gradient_disentangled",
    "model.vocab_size": 100,
    "model.pad_vocab_to_multiple_of": 1,
    "model.rope_theta": 1e4,
    "model.local_rope_theta": 1e3,
    "model.local_attention_window": 64,
    "model.global_attention_every": 2,
    "model.max_position_embeddings": 1024,
    "model.type_vocab_size": 3,
    "model.hidden_dropout": 0.0,
    "model.attention_dropout": 0.0,
    "model.layer_norm_eps": 1e-6,
    "model.initializer_range": 0.1,
    "objective.name": "mlm",
    "objective.mask_prob": 0.25,
    "objective.mask_prob_end": 0.4,
    "objective.mask_prob_anneal_steps": 20,
    "objective.masking": "span",
    "objective.mask_sampling": "google",
    "objective.mean_span_length": 2.0,
    "objective.gen_weight": 2.0,
    "objective.disc_weight": 10.0,
    "objective.temperature": 2.0,
    "objective.temperature_end": 0.5,
    "objective.temperature_anneal_steps": 20,
    "objective.disallow_correct": True,
    "objective.sampling_dropout": False,
    "data.corpus": "elsewhere",
    "data.blend": {"one": 2, "other": 1},
    "data.sequence_length": 64,
    "data.packing": "google",
    "data.shuffle_block_size": 8,
    "data.shuffle_window_blocks": 8,
    "data.num_lanes": 2,
    "data.skips": ((0, 5), (7, 9)),
    "data.prefetch_steps": 0,
    "data.cache_dir": "/scratch",
    "data.cache_bytes": 10**12,
    "batch.global_batch_size": 64,
    "batch.micro_batch_size": 16,
    "optim.name": "lamb",
    "optim.learning_rate": 1e-4,
    "optim.beta1": 0.8,
    "optim.beta2": 0.98,
    "optim.eps": 1e-8,
    "optim.weight_decay": 0.0,
    "optim.clip_norm": 2.0,
    "schedule.num_steps": 20_000,
    "schedule.warmup_steps": 1,
    "schedule.power": 2.0,
    "schedule.stop_step": 5,
    "engine.kind": "reference",
    "engine.zero_stage": 3,
    "engine.precision": "bf16",
    "engine.initial_loss_scale": 1024.0,
    "engine.loss_scale_window": 100,
    "engine.deepspeed_config": "zero.json",
    "engine.threads_per_rank": 2,
    "engine.timeout_seconds": 5.0,
    "engine.deterministic": True,
    "engine.activation_checkpointing": True,
    "engine.compile": True,
    "checkpoint.every_steps": 7,
    "checkpoint.keep_last": 1,
    "checkpoint.asynchronous": False,
    "checkpoint.parity": True,
    "resilience.commit_timeout_seconds": 5.0,
    "resilience.on_anomaly": "skip",
    "resilience.spike_deviations": 6.0,
    "resilience.spike_window_steps": 9,
    "resilience.max_rollbacks": 2,
    "resilience.compare_replicas_every": None,
    "resilience.max_restarts": 7,
    "resilience.min_world_size": 2,
    "resilience.term_grace_seconds": 5.0,
    "resilience.end_margin_seconds": 5.0,
    "resilience.hang_floor_seconds": 5.0,
    "resilience.hang_factor": 5.0,
    "resilience.hang_start_up_seconds": 5.0,
    "resilience.straggler_every": 5,
    "resilience.straggler_ratio": 5.0,
    "metrics.log_every": 1,
    "metrics.eval_every": 5,
    "metrics.eval_num_samples": 8,
    "metrics.tensorboard": False,
    "metrics.peak_tflops": 100.0,
    "metrics.alarm_recall": None,
    "metrics.alarm_auc": 0.5,
    "metrics.alarm_sampled_accuracy": 0.9,
    "metrics.alarms_from_step": 0,
}
# What must be set already where a knob is to have another value: the two go together only.
BESIDE: dict[str, Any] = {
    f"objective.{name}_{part}": {f"{name}_end": 0.3, f"{name}_anneal_steps": 10}
    for name in ("mask_prob", "temperature")
    for part in ("end", "anneal_steps")
}
# What a resume may change: where data lies, who computes it, when it is saved and measured.
MAY_CHANGE = {
    *("recipe", "schedule.stop_step", "data.corpus", "data.blend", "data.prefetch_steps"),
    *("data.cache_dir", "data.cache_bytes", "model.pad_vocab_to_multiple_of"),
    *(
        name
        for name in OTHER
        if name.split(".")[0] in {"engine", "checkpoint", "resilience", "metrics"}
    ),
} - {"engine.compile"}  # compiled code rounds differently


def test_every_knob_has_another_value_here() -> None:
    assert OTHER.keys() == changes.flatten(RunConfig()).keys()


@pytest.mark.parametrize("name", OTHER)
def test_a_resume_may_change_what_decides_no_number(name: str) -> None:
    section, _, field = name.rpartition(".")
    beside = BESIDE.get(name, {})
    old = files.from_dict({section: beside} if section else {})
    values = {field: OTHER[name]}
    changed = files.from_dict({section: {**beside, **values}} if section else values)
    assert changes.differences(old, changed) == [
        f"{name}: {changes.flatten(old)[name]!r} -> {OTHER[name]!r}"
    ]
    may_change = name in MAY_CHANGE
    assert (changes.forbidden_differences(old, changed) == []) == may_change
    assert (changes.fingerprint(changed) == changes.fingerprint(old)) == may_change


def test_every_resumable_name_is_a_knob_or_a_section() -> None:
    flat = changes.flatten(RunConfig())
    for name in changes.RESUMABLE_FIELDS:
        assert name in flat or any(knob.startswith(f"{name}.") for knob in flat)
