"""A classifier's folder on disk, and the pretrained folder it starts from.

A classifier is config.json + model.safetensors + the tokenizer's files + head.json. With the `hf`
head, transformers' class for sequences (`bodies.KINDS`) reads it; head.json holds
what transformers does not know (columns, target range, metrics).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import dacite
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from electra_dist.errors import UserError
from electra_dist.finetune.bodies import (
    KINDS,
    Body,
    BodyConfig,
    Classifier,
    make_body,
    make_classifier,
)
from electra_dist.finetune.encoding import TOKENIZER_FILES
from electra_dist.finetune.heads import HeadName
from electra_dist.finetune.metrics import Values
from electra_dist.finetune.tasks import Kind
from electra_dist.runtime.files import write_bytes_atomic, write_json_atomic


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What head.json says: everything needed to use the model on new text."""

    head: HeadName
    task: str
    kind: Kind
    labels: tuple[str, ...]
    """Label of each output; empty for a regression."""

    target_range: tuple[float, float] | None
    """Regression: the values that outputs 0 and 1 stand for."""

    metrics: tuple[str, ...]
    """The main one first."""

    max_length: int
    """Tokens of a row, specials included."""

    text: str
    text_b: str | None
    label: str
    columns_without_header: tuple[str, ...]
    format_version: int = 1

    @property
    def num_outputs(self) -> int:
        """Width of the head's output."""
        return 1 if self.kind == "regression" else len(self.labels)

    def answers(self, outputs: Tensor) -> Values:
        """Outputs (rows, num_outputs) to class indices, or to values in the file's units."""
        if self.target_range is None:
            return outputs.argmax(dim=1).numpy().astype(np.float64)
        low, high = self.target_range
        return low + outputs[:, 0].double().numpy() * (high - low)


def read_body_config(folder: Path) -> BodyConfig:
    """The shape of the encoder in a Hugging Face folder.

    Raises:
        UserError: no config.json, or one that is neither ELECTRA's nor ModernBERT's.
    """
    path = folder / "config.json"
    content = _read_json(path)
    kind = KINDS.get(str(content.get("model_type")))
    if kind is None:
        raise UserError(
            f"{path}: model_type is {content.get('model_type')!r} where 'electra' is needed (or "
            "'modernbert', of backbone modern); give the folder of an exported ELECTRA "
            "discriminator"
        )
    try:
        config: BodyConfig = kind.config.from_dict(content)
        return config
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a usable ELECTRA config ({error}); export the model again"
        ) from error


def load_body(folder: Path) -> Body:
    """The pretrained encoder of a Hugging Face folder, in fp32, without the head it may have.

    Raises:
        UserError: a file is missing or broken, or a weight of the encoder is missing or of another
        shape.
    """
    body = make_body(read_body_config(folder))
    weights = _read_weights(folder)
    prefix = KINDS[body.config.model_type].prefix
    if not any(name.startswith(prefix) for name in weights):
        prefix = ""
    own = body.state_dict()
    _load_exactly(
        folder,
        body,
        {key: weights[prefix + key] for key in own if prefix + key in weights},
    )
    return body


def save_classifier(
    folder: Path, model: Classifier, head: HeadConfig, tokenizer_folder: Path
) -> None:
    """Write a classifier's folder, each file under a temporary name first.

    head.json goes first and comes last: a folder without it is no classifier, so a kill halfway
    never leaves the weights of one run under the labels of another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "head.json").unlink(missing_ok=True)
    for name in TOKENIZER_FILES:
        source = tokenizer_folder / name
        if source.is_file():
            write_bytes_atomic(folder / name, source.read_bytes())
        else:
            (folder / name).unlink(missing_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # Not safetensors' save_file: its files are readable by their owner only, whatever the umask.
    content = save(state, metadata={"format": "pt"})
    write_bytes_atomic(folder / "model.safetensors", content)
    write_json_atomic(folder / "config.json", _transformers_config(model.body_config, head))
    write_json_atomic(folder / "head.json", asdict(head))


def load_saved(folder: Path) -> tuple[Classifier, HeadConfig]:
    """A classifier's folder as `save_classifier` wrote it.

    Raises:
        UserError: not such a folder, or a broken one.
    """
    if not (folder / "head.json").is_file():
        raise UserError(
            f"{folder}: there is no head.json; give a folder that `finetune --out` has written"
        )
    try:
        head = dacite.from_dict(
            HeadConfig, _read_json(folder / "head.json"), dacite.Config(cast=[tuple], strict=True)
        )
    except (dacite.DaciteError, TypeError) as error:
        raise UserError(
            f"{folder / 'head.json'}: {error}; fine-tune again with this version"
        ) from error
    model = make_classifier(make_body(read_body_config(folder)), head.head, head.num_outputs)
    _load_exactly(folder, model, _read_weights(folder))
    return model, head


def _transformers_config(body_config: BodyConfig, head: HeadConfig) -> dict[str, object]:
    labels = head.labels or ("value",)
    kind = KINDS[body_config.model_type]
    # With the google head transformers can use the encoder only: its own has one more layer.
    usable = kind.classifier if head.head == "hf" else kind.body.__name__
    return body_config.to_dict() | {
        "architectures": [usable],
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": (
            "regression" if head.kind == "regression" else "single_label_classification"
        ),
    }


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give a Hugging Face folder"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); export the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; export the model again")
    return content


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{folder}: there is no model.safetensors; export the model in that format")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); copy or export the model again"
        ) from error


def _load_exactly(folder: Path, module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Every parameter from the file: one left at its random start would be a silent loss."""
    missing = [name for name, _ in module.named_parameters() if name not in weights]
    if missing:
        raise UserError(
            f"{folder}/model.safetensors: {len(missing)} weights are missing, {missing[0]} first; "
            "its config.json belongs to another model"
        )
    try:
        with torch.no_grad():
            module.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder}/model.safetensors does not fit its config.json: {reason}"
        ) from error
