"""Answers of a fine-tuned model on new text: as Python objects, or a file in and JSONL out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from electra_dist.errors import UserError
from electra_dist.finetune.bodies import Classifier as Network
from electra_dist.finetune.encoding import TextEncoder
from electra_dist.finetune.folder import HeadConfig, load_saved
from electra_dist.finetune.heads import run
from electra_dist.finetune.reading import Columns, Example, read_examples, read_lines
from electra_dist.runtime.devices import device_named
from electra_dist.runtime.files import write_bytes_atomic


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one text or pair."""

    label: str | None
    """The likeliest label; None for a regression."""

    probabilities: dict[str, float] | None
    """Softmax over the labels; None for a regression."""

    value: float | None
    """A regression's value, in the units of its training file; None for a classification."""

    def to_json(self) -> dict[str, object]:
        """`label` and `probabilities`, or `value`."""
        if self.value is not None:
            return {"value": self.value}
        return {"label": self.label, "probabilities": self.probabilities}


class Classifier:
    """A fine-tuned model ready for text; `load_classifier` makes one."""

    def __init__(self, model: Network, head: HeadConfig, encoder: TextEncoder) -> None:
        self.model = model
        self.head = head
        self._encoder = encoder

    def predict(
        self, texts: Sequence[str], texts_b: Sequence[str] | None = None, batch_size: int = 32
    ) -> list[Prediction]:
        """One answer a text (or a pair), in order.

        Raises:
            UserError: second texts for a model of single texts, or the reverse, or not equally
            many.
        """
        if (texts_b is None) != (self.head.text_b is None):
            needed = "single texts" if self.head.text_b is None else "pairs of texts"
            raise UserError(f"this model was trained on {needed}; give it the same")
        if texts_b is not None and len(texts_b) != len(texts):
            raise UserError(
                f"there are {len(texts)} first and {len(texts_b)} second texts; give equally many"
            )
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}; raise it")
        if not texts:
            return []
        outputs = run(self.model, self._encoder, self._encoder.rows(texts, texts_b), batch_size)
        answers = self.head.answers(outputs)
        if self.head.kind == "regression":
            return [
                Prediction(label=None, probabilities=None, value=float(each)) for each in answers
            ]
        labels = self.head.labels
        return [
            Prediction(
                label=labels[int(answer)],
                probabilities=dict(zip(labels, row, strict=True)),
                value=None,
            )
            for answer, row in zip(answers, torch.softmax(outputs, dim=1).tolist(), strict=True)
        ]


def load_classifier(folder: Path | str, device: str = "auto") -> Classifier:
    """Read a folder that `finetune` has written, with either head.

    `device` is as `runtime.devices.device_named` takes it: by default a GPU where there is one.

    Raises:
        UserError: not such a folder, a broken file, or a device that is not there.
    """
    folder = Path(folder)
    where = device_named(device)
    model, head = load_saved(folder)
    return Classifier(model.to(where).eval(), head, TextEncoder(folder, head.max_length))


def predict_file(
    model: Path | str,
    input: Path | str,  # noqa: A002  (the name of the option)
    out: Path | str | None = None,
    *,
    batch_size: int = 32,
    device: str = "auto",
) -> list[dict[str, object]]:
    """Predict every row of a file; with `out`, also write them there as JSONL.

    A `.txt` file for a model of single texts has one text a line; any other file is a table with
    the text columns of the training files (a label column is not needed).

    Args:
        model: Folder of a fine-tuned model.
        input: The file.
        out: Where the rows go, all or nothing.
        batch_size: Texts at a time.
        device: Where the model runs; by default on a GPU where there is one.

    Returns:
        Rows in file order: `text` (and `text_b`), then `label` and `probabilities`, or `value`.

    Raises:
        UserError: as `load_classifier` and `reading.read_examples`.
    """
    classifier = load_classifier(model, device)
    examples = _read(Path(input), classifier.head)
    pairs = [example.text_b for example in examples if example.text_b is not None]
    texts = [example.text for example in examples]
    predictions = classifier.predict(texts, pairs or None, batch_size)
    rows = [_row(example, each) for example, each in zip(examples, predictions, strict=True)]
    if out is not None:
        _write_jsonl(Path(out), rows)
    return rows


def _read(path: Path, head: HeadConfig) -> list[Example]:
    if path.suffix.lower() == ".txt" and head.text_b is None:
        lines = enumerate(read_lines(path), start=1)
        return [Example(text=text, text_b=None, label=None, line=line) for line, text in lines]
    columns = Columns(
        text=head.text, text_b=head.text_b, without_header=head.columns_without_header
    )
    return read_examples(path, columns)


def _row(example: Example, prediction: Prediction) -> dict[str, object]:
    second = {} if example.text_b is None else {"text_b": example.text_b}
    return {"text": example.text, **second, **prediction.to_json()}


def _write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        write_bytes_atomic(path, content.encode())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); name another file"
        ) from error
