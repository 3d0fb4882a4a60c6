"""The networks: a pretrained encoder under one of two output heads."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import ElectraConfig, ElectraModel

from electra_dist.finetune.encoding import Batch, Row, TextEncoder

HeadName = Literal["google", "hf"]
GOOGLE_HEAD_DROPOUT = 0.1


class GoogleHead(nn.Module):
    """Dropout 0.1 and one Dense on the first token (google: classification_tasks.py)."""

    def __init__(self, config: ElectraConfig, num_outputs: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(GOOGLE_HEAD_DROPOUT)
        self.out_proj = nn.Linear(config.hidden_size, num_outputs)
        glorot(self.out_proj)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, length, hidden) to (batch, num_outputs)."""
        output: Tensor = self.out_proj(self.dropout(hidden[:, 0]))
        return output


class HfHead(nn.Module):
    """Dropout, Dense, GELU, dropout, Dense: transformers' ElectraClassificationHead."""

    def __init__(self, config: ElectraConfig, num_outputs: int) -> None:
        super().__init__()
        own = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if own is None else own)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, num_outputs)
        nn.init.normal_(self.dense.weight, std=config.initializer_range)
        nn.init.zeros_(self.dense.bias)
        glorot(self.out_proj)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, length, hidden) to (batch, num_outputs)."""
        inner = nn.functional.gelu(self.dense(self.dropout(hidden[:, 0])))
        output: Tensor = self.out_proj(self.dropout(inner))
        return output


HEADS: dict[str, Callable[[ElectraConfig, int], nn.Module]] = {"google": GoogleHead, "hf": HfHead}


class ElectraClassifier(nn.Module):
    """Encoder and head, with the parameter names of ElectraForSequenceClassification."""

    def __init__(self, body: ElectraModel, head: nn.Module) -> None:
        super().__init__()
        self.electra = body
        self.classifier = head

    @property
    def body_config(self) -> ElectraConfig:
        """Of the encoder."""
        return self.electra.config

    def forward(self, batch: Batch) -> Tensor:
        """Logits (or scaled regression values) of shape (batch, num_outputs)."""
        hidden = self.electra(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            token_type_ids=batch.token_type_ids,
        ).last_hidden_state
        output: Tensor = self.classifier(hidden)
        return output


@torch.no_grad()
def run(model: nn.Module, encoder: TextEncoder, rows: Sequence[Row], batch_size: int) -> Tensor:
    """Outputs without dropout, in the order of `rows`: fp32 on the CPU, (rows, num_outputs).

    Batches are made of rows of like length: on short texts of mixed length that saves about half
    the padding.
    """
    model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    outputs = []
    for start in range(0, len(order), batch_size):
        batch = encoder.collate([rows[index] for index in order[start : start + batch_size]])
        outputs.append(model(batch.to(device)).float().cpu())
    return torch.cat(outputs)[torch.argsort(torch.tensor(order))]


def glorot(layer: nn.Linear) -> None:
    """Glorot uniform, the bias 0."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
