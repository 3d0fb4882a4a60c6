"""The knobs of a fine-tuning run. Imports no torch, so that `finetune --help` is quick."""

import difflib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from electra_dist.errors import UserError
from electra_dist.finetune.tasks import TASKS, Kind, Task, custom_task


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Everything that a fine-tuning run depends on. Defaults are google-research/electra's."""

    model: Path
    """Folder of the pretrained discriminator: config.json, model.safetensors, tokenizer.json."""

    out: Path
    """Folder for the best seed's model and results.json; made if needed."""

    train: Path
    """Training examples: .tsv, .csv, .jsonl (or a folder of parallel files)."""

    dev: Path
    """Held-out examples that choose the best seed."""

    test: Path | None = None
    """Further labelled examples, scored but never used to choose."""

    task: str | None = None
    """A named task: sst2, cola, mrpc, rte, stsb, sick, banking77, snips."""

    text: str | None = None
    """Column of the text, or of the first text of a pair."""

    text_b: str | None = None
    """Column of the second text."""

    label: str | None = None
    """Column of the label or of the number."""

    kind: Kind | None = None
    """classification or regression; left out: from the training labels."""

    head: Literal["google", "hf"] = "google"
    """google: dropout and one Dense layer; hf: Dense, GELU, Dense, as transformers has it."""

    epochs: int | None = None
    """Passes over the training examples; left out: 3, for RTE and STS 10."""

    batch_size: int = 32
    """Examples a step."""

    lr: float | None = None
    """Peak learning rate; left out: 3e-4 below hidden size 512, 5e-5 from 1024, else 1e-4."""

    layer_decay: float | None = None
    """Each layer's rate over that of the layer above; left out: 0.8, from hidden 1024 0.9."""

    layer_decay_rule: Literal["fixed", "google"] = "fixed"
    """google: the encoder gets one factor more, as in the published code."""

    weight_decay: float = 0.01
    """On everything but LayerNorm and biases."""

    warmup_fraction: float = 0.1
    """Share of the steps over which the rate rises."""

    max_length: int = 128
    """Tokens of a row, [CLS] and [SEP] included; longer texts are cut."""

    seeds: tuple[int, ...] = (0,)
    """One run each: the seed sets the head's start, the order of the examples and the dropout."""

    reinitialize: bool = False
    """Train on an untrained encoder of the same shape: what pretraining is to be compared with."""

    threads: int | None = None
    """CPU threads; left out: as torch is set. The same number is needed for the same bits."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""

    def __post_init__(self) -> None:
        self.resolved_task()
        _at_least("epochs", 1 if self.epochs is None else self.epochs, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("max_length", self.max_length, 5)
        _at_least("threads", 1 if self.threads is None else self.threads, 1)
        _in_range("lr", 1e-4 if self.lr is None else self.lr, above=0.0, most=1.0)
        _in_range(
            "layer_decay",
            1.0 if self.layer_decay is None else self.layer_decay,
            above=0.0,
            most=1.0,
        )
        if not 0.0 <= self.weight_decay < 1.0:
            raise UserError(
                f"weight_decay must be in [0, 1), not {self.weight_decay}; 0.01 is usual"
            )
        if not 0.0 <= self.warmup_fraction < 1.0:
            raise UserError(
                f"warmup_fraction must be in [0, 1), not {self.warmup_fraction}; 0.1 is usual"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(
                f"seeds must be one or more different numbers from 0, not {list(self.seeds)}; try "
                "5 for 0 to 4"
            )

    def resolved_task(self) -> Task:
        """The named task with the given columns over its own, or a custom one.

        Raises:
            UserError: an unknown task, or no task and not both of `text` and `label`.
        """
        if self.task is None:
            if self.text is None or self.label is None:
                raise UserError(
                    "a task or the columns must be named: give --task NAME, or --text COLUMN and "
                    "--label COLUMN"
                )
            return custom_task(self.text, self.text_b, self.label, self.kind)
        if self.task not in TASKS:
            near = difflib.get_close_matches(self.task, TASKS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "or give --text and --label"
            raise UserError(f"task {self.task!r} is not one of {', '.join(TASKS)}; {hint}")
        task = TASKS[self.task]
        if self.kind is not None and self.kind != task.kind:
            raise UserError(
                f"kind {self.kind!r} does not go with task {self.task!r}, a {task.kind}; leave "
                "--kind out, or give --text and --label in place of --task"
            )
        if self.text is None and self.text_b is None and self.label is None:
            return task
        return replace(
            task,
            columns_without_header=(),
            text=self.text or task.text,
            text_b=self.text_b or task.text_b,
            label=self.label or task.label,
        )


def default_lr(hidden_size: int) -> float:
    """Peak rate by the encoder's width: small 3e-4, base 1e-4, large 5e-5."""
    if hidden_size < 512:
        return 3e-4
    return 5e-5 if hidden_size >= 1024 else 1e-4


def default_layer_decay(hidden_size: int) -> float:
    """Layer-wise decay by the encoder's width: large 0.9, else 0.8."""
    return 0.9 if hidden_size >= 1024 else 0.8


def parse_seeds(text: str) -> tuple[int, ...]:
    """`5` is how many (0 to 4); `3,7` and `3,` are the seeds themselves.

    Raises:
        UserError: anything else.
    """
    try:
        if "," in text:
            return tuple(int(part) for part in text.split(",") if part.strip())
        count = int(text)
    except ValueError as error:
        raise UserError(
            f"seeds must be a count such as 5 or a list such as 3,7, not {text!r}"
        ) from error
    _at_least("seeds", count, 1)
    return tuple(range(count))


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name} must be at least {least}, not {value}; raise it")


def _in_range(name: str, value: float, *, above: float, most: float) -> None:
    if not (math.isfinite(value) and above < value <= most):
        raise UserError(f"{name} must be above {above:g} and at most {most:g}, not {value}")
