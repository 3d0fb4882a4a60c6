"""Ways of sharing between the towers, and Hugging Face's folders, which hold a whole tower each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from electra_dist.config.schema import ModelConfig
from electra_dist.errors import UserError
from electra_dist.model.disentangled import DisentangledEmbeddings
from electra_dist.model.electra import JointElectra
from electra_dist.model.padding import stored_parameters

_DIFFERENCE = "discriminator.embeddings.difference"
_SHARING = {
    "untied_generator": (True, False),
    "untied_generator_embeddings": (False, True),
    "embedding_sharing": ("tied", "gradient_disentangled"),
}
"""Fields of ModelConfig that say what the towers share: what is ELECTRA's way, and the other."""


def own_names_of(model: JointElectra, tower: str) -> dict[str, str]:
    """Where a tower's parameters stand in the joint module, by what they are called if tied.

    Disentangled embeddings stand where their difference is.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    module = getattr(model, tower)
    embeddings = module.embeddings
    if isinstance(embeddings, DisentangledEmbeddings):
        embeddings = embeddings.difference
    plain = {f"embeddings.{name}": p for name, p in embeddings.named_parameters()}
    for name, parameter in module.named_parameters():
        if not name.startswith("embeddings."):
            plain[f"{tower}.{name}"] = parameter
    return {name: names[id(parameter)] for name, parameter in plain.items()}


def weights_alone(model: JointElectra, tower: str) -> dict[str, Tensor]:
    """A tower's weights as if it stood alone: `embeddings.*` and `TOWER.*`."""
    parameters = stored_parameters(model)
    weights: dict[str, Tensor] = {
        plain: parameters[own] for plain, own in own_names_of(model, tower).items()
    }
    embeddings = getattr(model, tower).embeddings
    if isinstance(embeddings, DisentangledEmbeddings):
        merged = {f"embeddings.{name}": value for name, value in embeddings.merged().items()}
        weights |= {name: value[: len(weights[name])] for name, value in merged.items()}
    return weights


def subtract_shared(weights: dict[str, Tensor]) -> None:
    """Make differences of what `own_names_of` placed there: a tower's embeddings as they are."""
    for name in weights:
        if _DIFFERENCE in name:
            weights[name] = weights[name] - weights[name.replace(_DIFFERENCE, "embeddings")]


def check_wanted(hf: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Refuse a config.json that wants what the encoder does not have.

    Raises:
        UserError: a value of `hf` is another than the wanted one.
    """
    for name, value in wanted.items():
        if hf[name] != value:
            raise UserError(
                f"{folder}: {name} = {hf[name]!r}, but this encoder reads {value!r} only"
            )


def sharing_marks(config: ModelConfig) -> dict[str, Any]:
    """What `read_sharing` must know of an exported module; nothing for ELECTRA's way."""
    values = {name: getattr(config, name) for name in _SHARING}
    return {name: value for name, value in values.items() if value != _SHARING[name][0]}


def read_sharing(hf: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The marks in the config.json of `folder`.

    Raises:
        UserError: there is one that is not known.
    """
    marked = hf.get("electra_dist", {})
    for name, value in marked.items():
        if name not in _SHARING or value not in _SHARING[name]:
            raise UserError(
                f"{folder / 'config.json'}: electra_dist.{name} = {value!r} is unknown here; was "
                "it exported by a later version?"
            )
    return dict(marked)
