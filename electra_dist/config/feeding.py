"""Sections on what a step reads: data and batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from electra_dist.config.checks import require, require_positive
from electra_dist.errors import UserError

MAX_BLEND_WEIGHT = 65_536
"""Largest sum of the weights of a blend: proportions are exact over so many rows."""


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
        require(
            self.sequence_length >= 8,
            "data.sequence_length",
            self.sequence_length,
            "must be at least 8",
            "128 and 512 are usual",
        )
        require_positive(
            "data",
            shuffle_block_size=self.shuffle_block_size,
            shuffle_window_blocks=self.shuffle_window_blocks,
            num_lanes=self.num_lanes,
        )
        self._check_blend()
        end = 0
        for first, last in self.skips:
            require(
                end <= first < last,
                "data.skips",
                [list(interval) for interval in self.skips],
                f"[{first}, {last}) is empty, below 0, or not behind the interval before it",
                "give intervals [first, last) of positions, in order",
            )
            end = last
        require(
            self.prefetch_steps >= 0,
            "data.prefetch_steps",
            self.prefetch_steps,
            "must not be negative",
            "use 0 to assemble batches in the training thread",
        )
        require(
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
        require(
            not (self.blend and self.corpus is not None),
            "data.blend",
            self.blend,
            f"names corpora beside data.corpus = {self.corpus!r}",
            "give one of the two",
        )
        for folder, weight in self.blend.items():
            require(
                weight >= 1,
                f"data.blend {folder!r}",
                weight,
                "must be a whole number of at least 1",
                "leave a corpus out that is not to be read",
            )
        require(
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
        require_positive(
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
