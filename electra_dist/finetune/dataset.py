"""Examples to numbers: which labels there are, what the targets are, encoded rows of each file."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from electra_dist.errors import UserError
from electra_dist.finetune.config import FinetuneConfig
from electra_dist.finetune.encoding import Row, TextEncoder
from electra_dist.finetune.metrics import Values
from electra_dist.finetune.reading import Columns, Example, read_examples
from electra_dist.finetune.tasks import Kind, Task, default_metrics


@dataclass(frozen=True, kw_only=True)
class Split:
    """One labelled file, encoded."""

    rows: list[Row]
    truth: Values
    """Class indices, or values in the file's units; shape (rows,)."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All the files of a run."""

    task: Task
    """With kind, metrics and target range filled in."""

    labels: tuple[str, ...]
    """Of a classification, sorted; empty for a regression."""

    splits: dict[str, Split]
    """train, dev and perhaps test."""


def read_dataset(config: FinetuneConfig, encoder: TextEncoder) -> Dataset:
    """Read, check and encode every file that the config names.

    Raises:
        UserError: anything wrong with a file; a label of dev or test that train does not have.
    """
    task = config.resolved_task()
    columns = Columns(
        text=task.text,
        text_b=task.text_b,
        label=task.label,
        without_header=task.columns_without_header,
    )
    paths = {"train": config.train, "dev": config.dev}
    if config.test is not None:
        paths["test"] = config.test
    examples = {name: read_examples(path, columns) for name, path in paths.items()}
    kind = task.kind or infer_kind(examples["train"])
    labels: tuple[str, ...] = ()
    target_range = None
    if kind == "regression":
        truths = {name: _values(paths[name], task, rows) for name, rows in examples.items()}
        target_range = task.target_range or _range_of(config.train, truths["train"])
    else:
        labels = discover_labels(config.train, examples["train"])
        truths = {name: _classes(paths[name], labels, rows) for name, rows in examples.items()}
    splits = {
        name: Split(rows=encode(encoder, rows), truth=truths[name])
        for name, rows in examples.items()
    }
    metrics = task.metrics or default_metrics(kind, len(labels))
    task = replace(task, kind=kind, metrics=metrics, target_range=target_range)
    return Dataset(task=task, labels=labels, splits=splits)


def encode(encoder: TextEncoder, examples: list[Example]) -> list[Row]:
    """Rows of single texts or of pairs, as the examples are."""
    seconds = [example.text_b for example in examples if example.text_b is not None]
    return encoder.rows([example.text for example in examples], seconds or None)


def infer_kind(examples: list[Example]) -> Kind:
    """Regression when every label is a number and not all are whole, else classification."""
    numbers = [_number(example.label or "") for example in examples]
    found = [number for number in numbers if number is not None]
    are_numbers = len(found) == len(numbers)
    has_fraction = any(not number.is_integer() for number in found)
    return "regression" if are_numbers and has_fraction else "classification"


def discover_labels(path: Path, examples: list[Example]) -> tuple[str, ...]:
    """The different labels of the training file, sorted as text.

    Raises:
        UserError: an empty label, or fewer than two different ones.
    """
    for example in examples:
        if not example.label:
            raise UserError(
                f"{path}, line {example.line}: the label is empty; fill it in or remove the row"
            )
    labels = tuple(sorted({example.label for example in examples if example.label}))
    if len(labels) < 2:
        raise UserError(
            f"{path}: every example has the label {labels[0]!r}; a classification needs two or "
            "more labels"
        )
    return labels


def _classes(path: Path, labels: tuple[str, ...], examples: list[Example]) -> Values:
    index = {label: float(position) for position, label in enumerate(labels)}
    for example in examples:
        if example.label not in index:
            shown = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
            raise UserError(
                f"{path}, line {example.line}: the label {example.label!r} is not among the "
                f"{len(labels)} of the training file ({shown}); correct it, or give --kind "
                "regression if labels are numbers to predict"
            )
    return np.array([index[example.label or ""] for example in examples], dtype=np.float64)


def _values(path: Path, task: Task, examples: list[Example]) -> Values:
    values = []
    for example in examples:
        value = _number(example.label or "")
        if value is None:
            raise UserError(
                f"{path}, line {example.line}: the target {example.label!r} is not a number; "
                "correct it, or give --kind classification"
            )
        if task.target_range and not task.target_range[0] <= value <= task.target_range[1]:
            low, high = task.target_range
            raise UserError(
                f"{path}, line {example.line}: the target {value:g} is outside {low:g} to "
                f"{high:g}, the range of {task.name}; correct it, or name the columns in place of "
                "--task"
            )
        values.append(value)
    return np.array(values, dtype=np.float64)


def _range_of(path: Path, values: Values) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise UserError(
            f"{path}: every target is {low:g}; a regression needs at least two different ones"
        )
    return low, high


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
