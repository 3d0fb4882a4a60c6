"""Sections on what is learnt: model, objective, optim, schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from electra_dist.config.checks import require, require_positive, require_share


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two towers and the tables they share (Clark et al. 2020, section 3)."""

    backbone: Literal["bert", "modern"] = "bert"
    """bert: ELECTRA's own. modern: rotary, pre-norm, GeGLU, local attention, no biases."""
    num_layers: int = 12
    """Transformer layers of the discriminator."""
    hidden_size: int = 256
    """Width of the discriminator; its heads are 64 wide, its ffn four times this (modern: 8/3)."""
    embedding_size: int = 128
    """Width of the word, position and token-type tables that both towers share."""
    generator_num_layers: int = 12
    """Transformer layers of the generator; ELECTRA keeps all of them and narrows the width."""
    generator_hidden_size: int = 64
    """Width of the generator: 1/4 of the discriminator's in small and large, 1/3 in base."""
    untied_generator: bool = True
    """False: one transformer is both towers; generator_num_layers and _hidden_size are not read."""
    untied_generator_embeddings: bool = False
    """True: the generator has tables of its own, as wide as itself, and no projection."""
    embedding_sharing: Literal["tied", "gradient_disentangled"] = "tied"
    """gradient_disentangled: the discriminator reads stop_gradient(the tables) + a difference."""
    vocab_size: int | None = None
    """Rows of the word table. Left out, it is the corpus's; a value unlike that is refused."""
    pad_vocab_to_multiple_of: int = 64
    """The word table gets rows of zeros up to a multiple of this, which no file ever holds."""
    max_position_embeddings: int = 512
    """Longest sequence that the model can ever read: rows of the position table (modern: none)."""
    type_vocab_size: int = 2
    """Token types: 0 for [CLS] A [SEP], 1 for B [SEP]; modern reads none."""
    rope_theta: float = 160_000.0
    """modern: base of the rotary angles in layers with global attention."""
    local_rope_theta: float = 10_000.0
    """modern: base of the rotary angles in layers with local attention."""
    local_attention_window: int = 128
    """modern: how many others a token of a local layer reads at most, half of them on each side."""
    global_attention_every: int = 3
    """modern: every third layer, the first one included, reads the whole sequence; 1: all do."""
    hidden_dropout: float = 0.1
    """Dropout after the embeddings, the attention output and the ffn output."""
    attention_dropout: float = 0.1
    """Dropout on the attention weights."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in every LayerNorm."""
    initializer_range: float = 0.02
    """Standard deviation of the truncated normal that weights start from."""

    def __post_init__(self) -> None:
        require_positive(
            "model",
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            embedding_size=self.embedding_size,
            generator_num_layers=self.generator_num_layers,
            generator_hidden_size=self.generator_hidden_size,
            vocab_size=self.vocab_size,
            pad_vocab_to_multiple_of=self.pad_vocab_to_multiple_of,
            rope_theta=self.rope_theta,
            local_rope_theta=self.local_rope_theta,
            local_attention_window=self.local_attention_window,
            global_attention_every=self.global_attention_every,
            max_position_embeddings=self.max_position_embeddings,
            type_vocab_size=self.type_vocab_size,
            layer_norm_eps=self.layer_norm_eps,
            initializer_range=self.initializer_range,
        )
        require_share(
            "model", hidden_dropout=self.hidden_dropout, attention_dropout=self.attention_dropout
        )
        for name in ("hidden_size", "generator_hidden_size"):
            width = getattr(self, name)
            require(
                width <= 64 or width % 64 == 0,
                f"model.{name}",
                width,
                "heads are 64 wide, so a width above 64 must be a multiple of 64",
                f"use {max(64, round(width / 64) * 64)}",
            )
            require(
                self.backbone == "bert" or width % 2 == 0,
                f"model.{name}",
                width,
                "rotary positions turn pairs of a head's elements, so the width must be even",
                f"use {width + 1}",
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
        return self.inner_width(self.hidden_size)

    @property
    def generator_ffn_size(self) -> int:
        """Inner width of the generator's feed-forward layers."""
        return self.inner_width(self.generator_hidden_size)

    def padded(self, vocab_size: int) -> int:
        """Rows of a word table of so many ids."""
        return -(-vocab_size // self.pad_vocab_to_multiple_of) * self.pad_vocab_to_multiple_of

    def inner_width(self, width: int) -> int:
        """Inner width of a feed-forward layer: 4 D; modern: 8/3 D to the nearest multiple of 64.

        Three matrices of 8/3 D have as many weights as two of 4 D. 2048 of 768 is exact; 704 of
        256 and 2752 of 1024 are near.
        """
        return 4 * width if self.backbone == "bert" else max(1, round(width / 24)) * 64


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is learnt from a batch (Clark et al. 2020, section 2)."""

    name: str = "electra"
    """Key of model.objectives.OBJECTIVES: electra, mlm, electric or uniform_generator."""
    mask_prob: float = 0.15
    """Share of a row's tokens that is selected for masking."""
    mask_prob_end: float | None = None
    """Share after mask_prob_anneal_steps, linear in between; left out, it stays at mask_prob."""
    mask_prob_anneal_steps: int | None = None
    """Steps from mask_prob to mask_prob_end; a row's step is its position / global_batch_size."""
    masking: Literal["token", "whole_word", "span"] = "token"
    """What is drawn to be masked: tokens, whole words or runs of tokens; the count is the same."""
    mask_sampling: Literal["without_replacement", "google"] = "without_replacement"
    """google draws with replacement: some positions come twice and get the mean of two samples."""
    mean_span_length: float = 3.0
    """Tokens in a run on average, for masking = "span"."""
    gen_weight: float = 1.0
    """Weight of the generator's masked-language-model loss."""
    disc_weight: float = 50.0
    """Weight of the discriminator's replaced-token loss."""
    temperature: float = 1.0
    """Divides the generator's logits before a replacement is sampled."""
    temperature_end: float | None = None
    """Temperature after temperature_anneal_steps, linear in between; left out, it stays."""
    temperature_anneal_steps: int | None = None
    """Steps from temperature to temperature_end."""
    disallow_correct: bool = False
    """True: the original is left out of what a replacement is sampled from."""
    sampling_dropout: bool = True
    """False: replacements come from a second pass of the generator, without dropout."""

    def __post_init__(self) -> None:
        require_positive(
            "objective",
            mask_prob=self.mask_prob,
            mask_prob_end=self.mask_prob_end,
            mask_prob_anneal_steps=self.mask_prob_anneal_steps,
            temperature=self.temperature,
            temperature_end=self.temperature_end,
            temperature_anneal_steps=self.temperature_anneal_steps,
        )
        require_share("objective", mask_prob=self.mask_prob)
        if self.mask_prob_end is not None:
            require_share("objective", mask_prob_end=self.mask_prob_end)
        for name in ("mask_prob", "temperature"):
            end, steps = getattr(self, f"{name}_end"), getattr(self, f"{name}_anneal_steps")
            require(
                (end is None) == (steps is None),
                f"objective.{name}_end",
                end,
                f"does not go with objective.{name}_anneal_steps = {steps!r}",
                "give both, or leave both out",
            )
        require(
            self.mask_sampling == "without_replacement" or self.masking == "token",
            "objective.mask_sampling",
            self.mask_sampling,
            f"draws tokens, not what objective.masking = {self.masking!r} says",
            "use without_replacement",
        )
        require(
            1 <= self.mean_span_length < math.inf,
            "objective.mean_span_length",
            self.mean_span_length,
            "must be at least 1 and finite",
            "3 is usual",
        )
        for name in ("gen_weight", "disc_weight"):
            value = getattr(self, name)
            require(
                0 <= value < math.inf,
                f"objective.{name}",
                value,
                "must be 0 or more and finite",
                "use 0 to turn it off",
            )

    @property
    def largest_mask_prob(self) -> float:
        """At any step: what the masked slots of a row are counted for."""
        return max(self.mask_prob, self.mask_prob_end or 0.0)

    def temperature_at(self, step: int) -> float:
        """Temperature of update `step`, counted from 0."""
        if self.temperature_end is None or self.temperature_anneal_steps is None:
            return self.temperature
        share = min(1.0, step / self.temperature_anneal_steps)
        return self.temperature + (self.temperature_end - self.temperature) * share


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How gradients become updates; weight decay is decoupled in all."""

    name: Literal["electra_adam", "adamw", "lamb"] = "electra_adam"
    """electra_adam corrects no bias, adamw does; lamb scales each weight's update to its norm."""
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
        require_positive(
            "optim", learning_rate=self.learning_rate, eps=self.eps, clip_norm=self.clip_norm
        )
        require_share("optim", beta1=self.beta1, beta2=self.beta2, weight_decay=self.weight_decay)


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
        require_positive(
            "schedule", num_steps=self.num_steps, power=self.power, stop_step=self.stop_step
        )
        require(
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
