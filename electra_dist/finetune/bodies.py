"""The encoders that can be fine-tuned, by `model_type` of their config.json."""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import ElectraConfig, ElectraModel, ModernBertConfig, ModernBertModel

from electra_dist.finetune.heads import HEADS, ElectraClassifier, HeadName
from electra_dist.finetune.modern import ModernClassifier

BodyConfig = ElectraConfig | ModernBertConfig
Body = ElectraModel | ModernBertModel
Classifier = ElectraClassifier | ModernClassifier


class Kind(NamedTuple):
    """Transformers' classes for one kind of encoder."""

    config: type[ElectraConfig] | type[ModernBertConfig]
    body: type[ElectraModel] | type[ModernBertModel]
    prefix: str
    """Of the encoder's weights in a folder of a model with a head."""
    classifier: str
    """Name of the class that reads what is saved with the `hf` head."""


KINDS = {
    "electra": Kind(ElectraConfig, ElectraModel, "electra.", "ElectraForSequenceClassification"),
    "modernbert": Kind(
        ModernBertConfig, ModernBertModel, "model.", "ModernBertForSequenceClassification"
    ),
}


def make_body(config: BodyConfig) -> Body:
    """An encoder with transformers' own initial weights."""
    make: Any = KINDS[config.model_type].body
    body: Body = make(config)
    return body


def make_classifier(body: Body, head: HeadName, num_outputs: int) -> Classifier:
    """The encoder under a fresh head."""
    if isinstance(body, ModernBertModel):
        return ModernClassifier(body, head, num_outputs)
    return ElectraClassifier(body, HEADS[head](body.config, num_outputs))
