"""Knobs of the two towers that exclude each other: refused in one sentence, with the remedy."""

from __future__ import annotations

from typing import Any

from electra_dist.config.checks import require
from electra_dist.config.learning import ModelConfig, ObjectiveConfig

_SHARING = ("untied_generator", "untied_generator_embeddings", "embedding_sharing")
_SAMPLING = ("temperature", "temperature_end", "disallow_correct", "sampling_dropout")

_EXCLUDED: dict[str, list[tuple[tuple[str, ...], str]]] = {
    "mlm": [
        (_SHARING, "objective.name = 'mlm' has one tower, which shares nothing"),
        (_SAMPLING, "objective.name = 'mlm' samples no replacements"),
    ],
    "uniform_generator": [
        (_SHARING, "objective.name = 'uniform_generator' has one tower, which shares nothing"),
        (_SAMPLING, "objective.name = 'uniform_generator' has no generator to sample from"),
    ],
    "electric": [
        (
            ("untied_generator",),
            "objective.name = 'electric' has causal towers, which cannot be the discriminator too",
        ),
        (
            _SAMPLING,
            "objective.name = 'electric' adds log q to its logit, so q is the plain softmax",
        ),
        (
            ("mask_prob_end",),
            "objective.name = 'electric' adds log(p / (1 - p)) to its logit, so p is one number",
        ),
    ],
}


def check_towers(model: ModelConfig, objective: ObjectiveConfig) -> None:
    """Refuse what the objective cannot have, and ways of sharing that exclude each other.

    Raises:
        UserError: two knobs do not go together.
    """
    for names, why in _EXCLUDED.get(objective.name, []):
        for name in names:
            section: Any = model if name in _SHARING else objective
            default = type(section).__dataclass_fields__[name].default
            value = getattr(section, name)
            where = "model" if name in _SHARING else "objective"
            require(value == default, f"{where}.{name}", value, why, f"leave it at {default!r}")
    require(
        not (model.untied_generator_embeddings and not model.untied_generator),
        "model.untied_generator_embeddings",
        model.untied_generator_embeddings,
        "one transformer (model.untied_generator = False) reads one set of tables",
        "leave one of the two out",
    )
    require(
        model.embedding_sharing == "tied" or not model.untied_generator_embeddings,
        "model.embedding_sharing",
        model.embedding_sharing,
        "shares tables that model.untied_generator_embeddings = True keeps apart",
        "leave one of the two out",
    )
    require(
        model.embedding_sharing == "tied" or model.untied_generator,
        "model.embedding_sharing",
        model.embedding_sharing,
        "needs two towers, but model.untied_generator = False makes them one transformer",
        "leave one of the two out",
    )
    require(
        model.backbone == "bert" or objective.name != "electric",
        "model.backbone",
        model.backbone,
        "has no causal towers, which objective.name = 'electric' needs",
        "use bert",
    )
    require(
        model.backbone == "bert" or model.embedding_sharing == "tied",
        "model.backbone",
        model.backbone,
        "has no embeddings that model.embedding_sharing = 'gradient_disentangled' could take apart",
        "use bert",
    )
