"""Every knob of a pretraining run: frozen, checked where it is born, with what it means under it.

Names are ELECTRA's own (``mask_prob``, ``disc_weight``, ``generator_hidden_size`` ...). Values that
follow from others are properties and never stored. What a knob must satisfy is checked at
construction, and the error says the field, the value and the remedy. The defaults are those of the
``small`` recipe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from electra_dist.errors import UserError

MAX_BLEND_WEIGHT = 65_536
"""Largest sum of the weights of a blend: proportions are exact over so many rows."""


def _require(condition: bool, field_name: str, value: object, rule: str, remedy: str) -> None:
    if not condition:
        raise UserError(f"{field_name} = {value!r}: {rule}; {remedy}")


def _require_positive(section: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None:
            _require(
                0 < value < math.inf,
                f"{section}.{name}",
                value,
                "must be above 0 and finite",
                "give a positive number",
            )


def _require_share(section: str, **values: float) -> None:
    for name, value in values.items():
        _require(
            0.0 <= value < 1.0,
            f"{section}.{name}",
            value,
            "is a share and must lie in [0, 1)",
            "write 0.1 for 10 %",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two towers and the tables they share (algorithm: sections 1 and 2)."""

    num_layers: int = 12
    """Transformer layers of the discriminator."""
    hidden_size: int = 256
    """Width of the discriminator; its heads are 64 wide and its ffn is four times this."""
    embedding_size: int = 128
    """Width of the word, position and token-type tables that both towers share."""
    generator_num_layers: int = 12
    """Transformer layers of the generator; ELECTRA keeps all of them and narrows the width."""
    generator_hidden_size: int = 64
    """Width of the generator: 1/4 of the discriminator's in small and large, 1/3 in base."""
    vocab_size: int | None = None
    """Rows of the word table. Left out, it is the corpus's; a value unlike that is refused."""
    max_position_embeddings: int = 512
    """Rows of the position table: the longest sequence that the model can ever read."""
    type_vocab_size: int = 2
    """Token types: 0 for [CLS] A [SEP], 1 for B [SEP]."""
    hidden_dropout: float = 0.1
    """Dropout after the embeddings, the attention output and the ffn output."""
    attention_dropout: float = 0.1
    """Dropout on the attention weights."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in every LayerNorm."""
    initializer_range: float = 0.02
    """Standard deviation of the truncated normal that weights start from."""

    def __post_init__(self) -> None:
        _require_positive(
            "model",
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            embedding_size=self.embedding_size,
            generator_num_layers=self.generator_num_layers,
            generator_hidden_size=self.generator_hidden_size,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_position_embeddings,
            type_vocab_size=self.type_vocab_size,
            layer_norm_eps=self.layer_norm_eps,
            initializer_range=self.initializer_range,
        )
        _require_share(
            "model", hidden_dropout=self.hidden_dropout, attention_dropout=self.attention_dropout
        )
        for name in ("hidden_size", "generator_hidden_size"):
            width = getattr(self, name)
            _require(
                width <= 64 or width % 64 == 0,
                f"model.{name}",
                width,
                "heads are 64 wide, so a width above 64 must be a multiple of 64",
                f"use {max(64, round(width / 64) * 64)}",
            )

    @property
    def num_heads(self) -> int:
        """Attention heads of the discriminator."""
        return max(1, self.hidden_size // 64)

    @property
    def generator_num_heads(self) -> int:
        """Attention heads of the generator."""
        return max(1, self.generator_hidden_size // 64)

    @property
    def ffn_size(self) -> int:
        """Inner width of the discriminator's feed-forward layers."""
        return 4 * self.hidden_size

    @property
    def generator_ffn_size(self) -> int:
        """Inner width of the generator's feed-forward layers."""
        return 4 * self.generator_hidden_size


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is learnt from a batch (algorithm: sections 3 to 5)."""

    name: str = "electra"
    """Key of model.objectives.OBJECTIVES: electra, or mlm (BERT on this data, no discriminator)."""
    mask_prob: float = 0.15
    """Share of a row's tokens that is selected for masking."""
    masking: Literal["token", "whole_word", "span"] = "token"
    """What is drawn to be masked: tokens, whole words or runs of tokens; the count is the same."""
    mean_span_length: float = 3.0
    """Tokens in a run on average, for masking = "span"."""
    gen_weight: float = 1.0
    """Weight of the generator's masked-language-model loss."""
    disc_weight: float = 50.0
    """Weight of the discriminator's replaced-token loss."""
    temperature: float = 1.0
    """Divides the generator's logits before a replacement is sampled."""

    def __post_init__(self) -> None:
        _require_positive("objective", mask_prob=self.mask_prob, temperature=self.temperature)
        _require_share("objective", mask_prob=self.mask_prob)
        _require(
            1 <= self.mean_span_length < math.inf,
            "objective.mean_span_length",
            self.mean_span_length,
            "must be at least 1 and finite",
            "3 is usual",
        )
        for name in ("gen_weight", "disc_weight"):
            value = getattr(self, name)
            _require(
                0 <= value < math.inf,
                f"objective.{name}",
                value,
                "must be 0 or more and finite",
                "use 0 to turn it off",
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where rows come from and in which order."""

    corpus: str | None = None
    """Folder made by `electra-dist corpus build` and `corpus pack`, or its address: s3://, gs://..."""
    blend: dict[str, int] = field(default_factory=dict)
    """Several of them by weight: a table [data.blend] "wiki" = 3, or --data.blend wiki 3 web 1."""
    sequence_length: int = 128
    """Tokens in a row, [CLS] and [SEP] included; the corpus must be packed at this length."""
    packing: Literal["full", "google", "packed"] = "full"
    """full keeps every token, google drops what does not fit, packed fills rows with documents."""
    shuffle_block_size: int = 512
    """Rows that lie together in the corpus and are read together: larger is kinder to disks."""
    shuffle_window_blocks: int = 64
    """Blocks that are mixed with each other: a uniform shuffle covers this many blocks of rows."""
    num_lanes: int = 1
    """Parts of the corpus that are read side by side: one a node, and each node fetches its own."""
    skips: tuple[tuple[int, int], ...] = ()
    """Sample positions [first, last) that are never used: [[512, 640]], or --data.skips 512 640."""
    prefetch_steps: int = 2
    """Steps that a background thread assembles ahead; 0 assembles in the training thread."""
    cache_dir: str | None = None
    """Where files of corpora at addresses are kept (default: in TMPDIR, else in ~/.cache)."""
    cache_bytes: int | None = None
    """Most that is kept there, a little more than what a node reads; None: no limit."""

    def __post_init__(self) -> None:
        _require(
            self.sequence_length >= 8,
            "data.sequence_length",
            self.sequence_length,
            "must be at least 8",
            "128 and 512 are usual",
        )
        _require_positive(
            "data",
            shuffle_block_size=self.shuffle_block_size,
            shuffle_window_blocks=self.shuffle_window_blocks,
            num_lanes=self.num_lanes,
        )
        self._check_blend()
        end = 0
        for first, last in self.skips:
            _require(
                end <= first < last,
                "data.skips",
                [list(interval) for interval in self.skips],
                f"[{first}, {last}) is empty, below 0, or not behind the interval before it",
                "give intervals [first, last) of positions, in order",
            )
            end = last
        _require(
            self.prefetch_steps >= 0,
            "data.prefetch_steps",
            self.prefetch_steps,
            "must not be negative",
            "use 0 to assemble batches in the training thread",
        )
        _require(
            self.cache_bytes is None or self.cache_bytes > 0,
            "data.cache_bytes",
            self.cache_bytes,
            "must be above 0",
            "leave it out for no limit",
        )

    @property
    def folders(self) -> tuple[str, ...]:
        """The folder of every corpus; none where the config names none yet."""
        return tuple(self.blend) or ((self.corpus,) if self.corpus is not None else ())

    def _check_blend(self) -> None:
        _require(
            not (self.blend and self.corpus is not None),
            "data.blend",
            self.blend,
            f"names corpora beside data.corpus = {self.corpus!r}",
            "give one of the two",
        )
        for folder, weight in self.blend.items():
            _require(
                weight >= 1,
                f"data.blend {folder!r}",
                weight,
                "must be a whole number of at least 1",
                "leave a corpus out that is not to be read",
            )
        _require(
            sum(self.blend.values()) <= MAX_BLEND_WEIGHT,
            "data.blend",
            self.blend,
            f"its weights add up to more than {MAX_BLEND_WEIGHT:,}",
            "divide them all by the same number",
        )


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How many samples make a step, and how many of them pass through the model at once."""

    global_batch_size: int = 128
    """Samples in one optimizer step, over all ranks."""
    micro_batch_size: int = 32
    """Samples in one forward pass. Part of the arithmetic: means are taken over one micro-batch."""

    def __post_init__(self) -> None:
        _require_positive(
            "batch",
            global_batch_size=self.global_batch_size,
            micro_batch_size=self.micro_batch_size,
        )
        if self.global_batch_size % self.micro_batch_size:
            divisors = [
                n for n in range(1, self.micro_batch_size + 1) if self.global_batch_size % n == 0
            ]
            rounded_up = -(-self.global_batch_size // self.micro_batch_size) * self.micro_batch_size
            raise UserError(
                f"batch.global_batch_size = {self.global_batch_size} is not a multiple of "
                f"batch.micro_batch_size = {self.micro_batch_size}; set batch.micro_batch_size to "
                f"{divisors[-1]}, or batch.global_batch_size to {rounded_up}"
            )

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches in one step (M of the determinism contract)."""
        return self.global_batch_size // self.micro_batch_size


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """ELECTRA's Adam: no bias correction, decoupled weight decay (algorithm: section 6)."""

    learning_rate: float = 5e-4
    """Peak of the schedule."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-6
    """Added to the square root of the second moment."""
    weight_decay: float = 0.01
    """Decay of every weight but LayerNorm and biases; embeddings decay too."""
    clip_norm: float = 1.0
    """Largest global norm of the joint gradient, over both towers."""

    def __post_init__(self) -> None:
        _require_positive(
            "optim", learning_rate=self.learning_rate, eps=self.eps, clip_norm=self.clip_norm
        )
        _require_share("optim", beta1=self.beta1, beta2=self.beta2, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long, and how the rate rises and falls."""

    num_steps: int = 1_000_000
    """Steps of the whole schedule: the rate reaches 0 here."""
    warmup_steps: int = 10_000
    """Steps over which the rate rises from 0; the factor multiplies the decay."""
    power: float = 1.0
    """Exponent of the polynomial decay; 1 is linear."""
    stop_step: int | None = None
    """Finish early at this step without touching the schedule."""

    def __post_init__(self) -> None:
        _require_positive(
            "schedule", num_steps=self.num_steps, power=self.power, stop_step=self.stop_step
        )
        _require(
            0 <= self.warmup_steps < self.num_steps,
            "schedule.warmup_steps",
            self.warmup_steps,
            f"must lie in [0, schedule.num_steps = {self.num_steps})",
            f"use {self.num_steps // 100} (1 %), or more steps",
        )

    @property
    def last_step(self) -> int:
        """The step at which the run is finished."""
        return min(self.num_steps, self.stop_step or self.num_steps)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Who computes a step and how its state is sharded."""

    kind: Literal["deepspeed", "reference"] = "deepspeed"
    """deepspeed is the product; reference is plain PyTorch in fp32, the oracle of the tests."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO: 0 replicates, 1 shards the optimizer, 2 also gradients, 3 also parameters."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What the model computes in; the weights that the optimizer updates are fp32 in any case."""
    deepspeed_config: str | None = None
    """JSON of ZeRO and communication keys (see deepspeed_configs/); any other key is refused."""
    threads_per_rank: int | None = None
    """CPU threads of a rank, part of a run's bits. Left out: settled once, kept in config.json."""
    timeout_seconds: float = 1800.0
    """Deadline of a collective operation: then the missing rank is named and the attempt ends."""
    deterministic: bool = False
    """On CUDA: deterministic kernels only, so that a resumed run has the same bits, as on a CPU."""

    def __post_init__(self) -> None:
        _require_positive(
            "engine", timeout_seconds=self.timeout_seconds, threads_per_rank=self.threads_per_rank
        )
        _require(
            not (self.kind == "reference" and self.precision != "fp32"),
            "engine.precision",
            self.precision,
            "the reference engine computes in fp32 only",
            'set engine.kind = "deepspeed", or engine.precision = "fp32"',
        )
        _require(
            not (self.kind == "deepspeed" and self.zero_stage == 0 and self.precision == "bf16"),
            "engine.precision",
            self.precision,
            "DeepSpeed's bf16 optimizer is wrong at engine.zero_stage = 0",
            "use zero_stage 1, 2 or 3 for bf16",
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When state goes to disk and how much of it stays."""

    every_steps: int = 1000
    """Save after every so many steps; a stop and the end save as well."""
    keep_last: int = 3
    """Newest checkpoints to keep; older ones go once a newer one has been verified."""
    asynchronous: bool = True
    """Train on while a save is written: takes host memory of twice what a rank saves."""
    parity: bool = False
    """Write a file as large as the largest shard, from which one lost shard can be rebuilt."""

    def __post_init__(self) -> None:
        _require_positive("checkpoint", every_steps=self.every_steps, keep_last=self.keep_last)


@dataclass(frozen=True, kw_only=True)
class ResilienceConfig:
    """What a run does when something goes wrong."""

    commit_timeout_seconds: float = 600.0
    """Deadline for all ranks' files of one checkpoint to be complete on disk."""

    def __post_init__(self) -> None:
        _require_positive("resilience", commit_timeout_seconds=self.commit_timeout_seconds)


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """What is measured and how often."""

    log_every: int = 10
    """Steps between two lines of metrics.jsonl and of the console."""
    eval_every: int = 1000
    """Steps between two held-out evaluations (frozen corruption); the last step evaluates too."""
    eval_num_samples: int = 1024
    """Held-out rows in one evaluation (or all there are)."""
    tensorboard: bool = True
    """Write TensorBoard event files under RUN/tensorboard."""

    def __post_init__(self) -> None:
        _require_positive(
            "metrics",
            log_every=self.log_every,
            eval_every=self.eval_every,
            eval_num_samples=self.eval_num_samples,
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One pretraining run, complete: written to RUN/config.json exactly as it was resolved."""

    recipe: str = "small"
    """The recipe that this config started from; for people, not read again."""
    seed: int = 0
    """Order of the rows, masks, initial weights, dropout and sampling follow from this number."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The two towers."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is learnt."""
    data: DataConfig = field(default_factory=DataConfig)
    """Rows and their order."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Samples of a step."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Steps and learning rate."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """DeepSpeed ZeRO, or the reference."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    resilience: ResilienceConfig = field(default_factory=ResilienceConfig)
    """Surviving."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    """Measuring."""

    def __post_init__(self) -> None:
        _require(
            0 <= self.seed < 2**63,
            "seed",
            self.seed,
            "must lie in [0, 2**63)",
            "use a small whole number",
        )
        _require(
            self.data.sequence_length <= self.model.max_position_embeddings,
            "data.sequence_length",
            self.data.sequence_length,
            f"is longer than model.max_position_embeddings = {self.model.max_position_embeddings}",
            f"raise model.max_position_embeddings to {self.data.sequence_length}",
        )

    @property
    def max_masked(self) -> int:
        """Masked slots of a row: N = int((p + 0.005) L), as google-research/electra counts them."""
        return max(1, int((self.objective.mask_prob + 0.005) * self.data.sequence_length))
