"""Parameter groups of fine-tuning: a rate for each depth, and what weight decay spares."""

import re
from typing import Any, Literal

from torch import nn

from electra_dist.finetune.bodies import Classifier

LayerDecayRule = Literal["fixed", "google"]

_EMBEDDINGS = ("electra.embeddings.", "electra.embeddings_project.", "model.embeddings.")
_LAYER = re.compile(r"(?:electra\.encoder\.layer|model\.layers)\.(\d+)\.")


def parameter_depth(name: str, num_layers: int) -> int:
    """0 for the embeddings and their projection, i + 1 for layer i, num_layers + 1 for the head."""
    if name.startswith(_EMBEDDINGS):
        return 0
    layer = _LAYER.match(name)
    if layer:
        return int(layer.group(1)) + 1
    if name.startswith("model.final_norm."):
        return num_layers  # of the last layer
    assert name.startswith(("classifier.", "head.")), name
    return num_layers + 1


def rate_factor(depth: int, num_layers: int, layer_decay: float, rule: LayerDecayRule) -> float:
    """Factor on the learning rate at a depth.

    `fixed`: decay^(num_layers + 1 - depth), so each part has `layer_decay` times the rate of the
    part above. `google` counts the head as num_layers + 2 (a pooler that is no longer there), so
    that the whole encoder has one factor less; the head has the full rate under both rules.
    """
    head_depth = num_layers + 1
    gap = 1 if rule == "google" and depth != head_depth else 0
    return layer_decay ** (head_depth + gap - depth)


def spared_from_decay(name: str) -> bool:
    """Whether a parameter gets no weight decay: LayerNorm's and every bias."""
    return "LayerNorm" in name or name.endswith(("bias", "norm.weight"))


def layer_wise_groups(
    model: Classifier,
    lr: float,
    layer_decay: float,
    rule: LayerDecayRule,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Groups {params, lr, weight_decay}: for each depth one with weight decay, one without."""
    num_layers = model.body_config.num_hidden_layers
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        key = (parameter_depth(name, num_layers), spared_from_decay(name))
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * rate_factor(depth, num_layers, layer_decay, rule),
            "weight_decay": 0.0 if is_spared else weight_decay,
        }
        for (depth, is_spared), parameters in groups.items()
    ]
