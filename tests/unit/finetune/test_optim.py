from pathlib import Path

import pytest

from electra_dist.finetune.config import default_layer_decay, default_lr
from electra_dist.finetune.folder import load_body
from electra_dist.finetune.heads import ElectraClassifier, HfHead
from electra_dist.finetune.optim import LayerDecayRule, layer_wise_groups


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # 2 layers, decay 0.5: embeddings, layer 0, layer 1, head.
        ("fixed", [0.125, 0.25, 0.5, 1.0]),
        ("google", [0.0625, 0.125, 0.25, 1.0]),
    ],
)
def test_each_parameter_once_with_the_rate_of_its_depth(
    pretrained: Path, rule: LayerDecayRule, expected: list[float]
) -> None:
    body = load_body(pretrained)
    model = ElectraClassifier(body, HfHead(body.config, 2))
    groups = layer_wise_groups(model, 1.0, 0.5, rule, 0.01)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(rates) == len(list(model.parameters()))
    prefixes = [
        ("electra.embeddings.", "electra.embeddings_project."),
        ("electra.encoder.layer.0.",),
        ("electra.encoder.layer.1.",),
        ("classifier.",),
    ]
    for name, parameter in model.named_parameters():
        depth = next(i for i, starts in enumerate(prefixes) if name.startswith(starts))
        is_spared = "LayerNorm" in name or name.endswith(".bias")
        assert rates[id(parameter)] == (expected[depth], 0.0 if is_spared else 0.01), name


def test_defaults_follow_the_width() -> None:
    assert [default_lr(width) for width in (256, 511, 512, 768, 1024)] == [
        3e-4,
        3e-4,
        1e-4,
        1e-4,
        5e-5,
    ]
    assert [default_layer_decay(width) for width in (256, 768, 1024)] == [0.8, 0.8, 0.9]
