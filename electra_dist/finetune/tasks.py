"""The named downstream tasks: which columns, which kind of answer, which metrics.

A new task is one entry in `TASKS`. Files that are not of a named task are read with the column
names the user gives (`custom_task`). This file imports no torch: the command line reads it for
`--help`.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["classification", "regression"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """How a task's files are read and how its answers are scored."""

    name: str
    """The word after `--task`, or "custom"."""

    text: str
    """Column of the text, or of the first text of a pair."""

    text_b: str | None = None
    """Column of the second text; None: single texts."""

    label: str
    """Column of the label or of the number to predict."""

    kind: Kind | None = None
    """None: taken from the training labels (numbers with a fractional part mean regression)."""

    columns_without_header: tuple[str, ...] = ()
    """Columns of a file whose first line is already data (told by a number in it); empty: a header
    is required."""

    target_range: tuple[float, float] | None = None
    """Lowest and highest target of a regression; None: the range found in the training file."""

    metrics: tuple[str, ...] = ()
    """Names from `metrics.METRICS`, the main one first; empty: `default_metrics`."""

    num_epochs: int = 3
    """Passes over the training file when the user names no other number."""


_TASKS = (
    Task(
        name="sst2",
        text="sentence",
        label="label",
        kind="classification",
        columns_without_header=("sentence", "label"),
        metrics=("accuracy",),
    ),
    Task(
        name="cola",
        text="sentence",
        label="label",
        kind="classification",
        columns_without_header=("source", "label", "star", "sentence"),
        metrics=("matthews", "accuracy"),
    ),
    Task(
        name="mrpc",
        text="#1 String",
        text_b="#2 String",
        label="Quality",
        kind="classification",
        metrics=("accuracy", "f1"),
    ),
    Task(
        name="rte",
        text="sentence1",
        text_b="sentence2",
        label="label",
        kind="classification",
        metrics=("accuracy",),
        num_epochs=10,
    ),
    Task(
        name="stsb",
        text="sentence1",
        text_b="sentence2",
        label="score",
        kind="regression",
        target_range=(0.0, 5.0),
        # Spearman first: it is what the paper reports for STS.
        metrics=("spearman", "pearson", "mse"),
        num_epochs=10,
    ),
    Task(
        name="sick",
        text="sentence_A",
        text_b="sentence_B",
        label="relatedness_score",
        kind="regression",
        target_range=(1.0, 5.0),
        metrics=("pearson", "spearman", "mse"),
    ),
    Task(
        name="banking77",
        text="text",
        label="category",
        kind="classification",
        metrics=("accuracy", "f1_macro"),
    ),
    # A SNIPS split is a folder of parallel files: `seq.in` has the texts, `label` the intents.
    Task(
        name="snips",
        text="seq.in",
        label="label",
        kind="classification",
        metrics=("accuracy", "f1_macro"),
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
"""Every named task, by name."""


def custom_task(text: str, text_b: str | None, label: str, kind: Kind | None) -> Task:
    """A task over the user's own columns."""
    return Task(name="custom", text=text, text_b=text_b, label=label, kind=kind)


def default_metrics(kind: Kind, num_labels: int) -> tuple[str, ...]:
    """Metrics of a task that names none; the first one chooses the best seed."""
    if kind == "regression":
        return ("pearson", "spearman", "mse")
    return ("accuracy", "f1" if num_labels == 2 else "f1_macro")
