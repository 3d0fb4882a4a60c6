"""Classifiers over transformers' ModernBertModel, which a `modern` run exports."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertModel
from transformers.models.modernbert.modeling_modernbert import ModernBertPredictionHead

from electra_dist.finetune.encoding import Batch
from electra_dist.finetune.heads import GOOGLE_HEAD_DROPOUT, HeadName, glorot


class ModernClassifier(nn.Module):
    """Encoder and head on the first token; `hf`: those of ModernBertForSequenceClassification.

    `google`: dropout and one Dense. `hf`: Dense, GELU and norm before them. Segments of a pair are
    told by [SEP] alone.
    """

    def __init__(self, body: ModernBertModel, head: HeadName, num_outputs: int) -> None:
        super().__init__()
        config = body.config
        self.model = body
        self.head = None
        if head == "hf":
            self.head = ModernBertPredictionHead(config)
            nn.init.normal_(self.head.dense.weight, std=config.initializer_range)
        own = GOOGLE_HEAD_DROPOUT if head == "google" else config.classifier_dropout
        self.drop = nn.Dropout(own)
        self.classifier = nn.Linear(config.hidden_size, num_outputs)
        glorot(self.classifier)

    @property
    def body_config(self) -> ModernBertConfig:
        """Of the encoder."""
        return self.model.config

    def forward(self, batch: Batch) -> Tensor:
        """Logits (or scaled regression values) of shape (batch, num_outputs)."""
        hidden = self.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state[:, 0]
        if self.head is not None:
            hidden = self.head(hidden)
        output: Tensor = self.classifier(self.drop(hidden))
        return output
