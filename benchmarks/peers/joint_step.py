"""A joint step of ELECTRA as it is written with transformers: two models, tied, one backward.

As a program it is a peer of its own process, with the settings that PyTorch starts with, and takes
a turn for each line that it reads.

Shapes: B rows, L positions, N masked slots of a row, V vocabulary.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from electra_dist.config.schema import RunConfig
from electra_dist.engine.optim import ElectraAdam, decay_groups
from electra_dist.engine.protocol import to_batch

CPU = torch.device("cpu")


class Joint(nn.Module):
    """`ElectraForMaskedLM` and `ElectraForPreTraining` over one set of embeddings."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        import transformers

        model = config.model
        shared: dict[str, Any] = {
            "vocab_size": model.vocab_size,
            "embedding_size": model.embedding_size,
            "max_position_embeddings": model.max_position_embeddings,
            "hidden_dropout_prob": model.hidden_dropout,
            "attention_probs_dropout_prob": model.attention_dropout,
        }
        self.generator = transformers.ElectraForMaskedLM(
            transformers.ElectraConfig(
                hidden_size=model.generator_hidden_size,
                num_hidden_layers=model.generator_num_layers,
                num_attention_heads=model.generator_num_heads,
                intermediate_size=model.generator_ffn_size,
                **shared,
            )
        )
        self.discriminator = transformers.ElectraForPreTraining(
            transformers.ElectraConfig(
                hidden_size=model.hidden_size,
                num_hidden_layers=model.num_layers,
                num_attention_heads=model.num_heads,
                intermediate_size=model.ffn_size,
                **shared,
            )
        )
        self.generator.electra.embeddings = self.discriminator.electra.embeddings
        table = self.discriminator.electra.embeddings.word_embeddings.weight
        self.generator.generator_lm_head.weight = table

    def at_masked(
        self, inputs: dict[str, Tensor], positions_BN: Tensor, labels_BL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss, and logits at the masked slots only [B, N, V]: what a careful user writes."""
        hidden_BLD = self.generator.electra(**inputs).last_hidden_state
        index_BND = positions_BN.unsqueeze(-1).expand(-1, -1, hidden_BLD.shape[-1])
        projected = self.generator.generator_predictions(hidden_BLD.gather(1, index_BND))
        logits_BNV = self.generator.generator_lm_head(projected)
        labels_BN = labels_BL.gather(1, positions_BN)
        return F.cross_entropy(logits_BNV.flatten(0, 1), labels_BN.flatten()), logits_BNV

    def everywhere(
        self, inputs: dict[str, Tensor], positions_BN: Tensor, labels_BL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same by the model's own `labels` argument, which makes logits at all positions."""
        output = self.generator(**inputs, labels=labels_BL)
        return output.loss, output.logits[torch.arange(len(labels_BL))[:, None], positions_BN]


def runner(config: RunConfig, micro_batches: list[Any], *, gathered: bool) -> Callable[[], float]:
    """One optimizer step over `micro_batches`: its loss. Clip and optimizer are ours."""
    model = Joint(config).train()
    optim = config.optim
    optimizer = ElectraAdam(
        decay_groups(model, optim.weight_decay), lr=1e-5, betas=(optim.beta1, optim.beta2)
    )

    def forward(micro_batch: Any) -> Tensor:
        batch = to_batch(micro_batch, config.seed, CPU, keep_padding=True)
        ids_BL, positions_BN = batch.input_ids_BL, batch.masked_positions_BN
        mask_BL = batch.attention_mask_BL
        inputs = {
            "attention_mask": torch.ones_like(ids_BL) if mask_BL is None else mask_BL.long(),
            "token_type_ids": batch.token_type_ids_BL,
        }
        # Slots of weight 0 hold position 0, which is no label's: the loss ignores -100.
        used_BN = batch.masked_weights_BN > 0
        labels_BL = torch.full_like(ids_BL, -100)
        labels_BL.scatter_(1, positions_BN, ids_BL.gather(1, positions_BN))
        labels_BL[:, 0] = -100
        generate = model.at_masked if gathered else model.everywhere
        generator_loss, logits_BNV = generate(
            {"input_ids": batch.masked_ids_BL, **inputs}, positions_BN, labels_BL
        )
        logits_BNV = logits_BNV.detach()
        noise_BNV = torch.empty_like(logits_BNV).exponential_().log_()  # its negative is Gumbel's
        sampled_BN = (logits_BNV - noise_BNV).argmax(-1)
        sampled_BN = torch.where(used_BN, sampled_BN, ids_BL[:, :1])
        corrupted_BL = ids_BL.scatter(1, positions_BN, sampled_BN)
        replaced_BL = (corrupted_BL != ids_BL).float()
        logits_BL = model.discriminator(input_ids=corrupted_BL, **inputs).logits
        bce_BL = F.binary_cross_entropy_with_logits(logits_BL, replaced_BL, reduction="none")
        real_BL = inputs["attention_mask"].float()
        return generator_loss + 50.0 * (bce_BL * real_BL).sum() / real_BL.sum()

    def step() -> float:
        total = 0.0
        for micro_batch in micro_batches:
            loss = forward(micro_batch) / len(micro_batches)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def main() -> None:
    """Serve steps over the rows that `joint_rows.full_rows` makes."""
    from benchmarks.peers.joint_rows import full_rows, small
    from benchmarks.peers.turns import CLOCKS, serve, turn

    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--clock", choices=sorted(CLOCKS), required=True)
    parser.add_argument("--gathered", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = small()
    serve(turn(runner(config, [full_rows(config)], gathered=args.gathered), args.clock))


if __name__ == "__main__":
    main()
