"""The joint module: a generator and a discriminator over one set of tables (Clark et al. 2020).

Shapes: B rows, L positions, N masked slots of a row, D tower width, E embedding width, V
vocabulary.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from electra_dist.config.schema import RunConfig
from electra_dist.errors import UserError
from electra_dist.model import random
from electra_dist.model.backbones import BACKBONES, ENCODERS, AnyEmbeddings, AnyEncoder
from electra_dist.model.batch import Batch, Losses
from electra_dist.model.disentangled import DisentangledEmbeddings
from electra_dist.model.encoder import Embeddings, Encoder, draw_keys
from electra_dist.model.heads import GeneratorHead
from electra_dist.model.objectives import OBJECTIVES, objective_named
from electra_dist.model.padding import clear_padding, stored_parameters
from electra_dist.model.two_towers import TwoTowerGenerator
from electra_dist.runtime.keys import fold


class Generator(nn.Module):
    """The masked language model: gathers the masked positions first and makes logits only there."""

    def __init__(self, embeddings: AnyEmbeddings, encoder: AnyEncoder, head: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = encoder
        self.head = head

    def forward(
        self,
        ids_BL: Tensor,
        token_type_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        positions_BN: Tensor,
        block_ids_BL: Tensor | None = None,
        position_ids_BL: Tensor | None = None,
        places_T: Tensor | None = None,
        *,
        drops: bool = True,
        with_padding: bool = False,
    ) -> Tensor:
        """Logits [B, N, V] at `positions_BN`; what stands behind them as in `Batch`.

        `drops` = False leaves dropout out in training too. `with_padding` gives all R columns of a
        padded word table, those beyond V being -inf: a loss takes them without a copy.
        """
        key, keys_S = draw_keys(self.encoder, ids_BL.device) if drops else (None, None)
        embedded_BLE = self.embeddings(ids_BL, token_type_ids_BL, position_ids_BL, key)
        hidden_BLD = self.encoder(
            embedded_BLE, attention_mask_BL, block_ids_BL, places_T, keys_S, position_ids_BL
        )
        index_BND = positions_BN.unsqueeze(-1).expand(-1, -1, hidden_BLD.shape[-1])
        word = self.embeddings.word
        logits_BNR: Tensor = self.head(hidden_BLD.gather(1, index_BND), word.weight)
        return logits_BNR if with_padding else logits_BNR[..., : word.num_ids]


class Discriminator(nn.Module):
    """The product: an encoder that says for every token whether it was replaced."""

    def __init__(
        self,
        embeddings: AnyEmbeddings | DisentangledEmbeddings,
        encoder: AnyEncoder,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = encoder
        self.head = head

    def forward(
        self,
        ids_BL: Tensor,
        token_type_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        block_ids_BL: Tensor | None = None,
        position_ids_BL: Tensor | None = None,
        places_T: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, L]; the last three as in `Batch`."""
        key, keys_S = draw_keys(self.encoder, ids_BL.device)
        embedded_BLE = self.embeddings(ids_BL, token_type_ids_BL, position_ids_BL, key)
        hidden_BLD = self.encoder(
            embedded_BLE, attention_mask_BL, block_ids_BL, places_T, keys_S, position_ids_BL
        )
        logits_BL: Tensor = self.head(hidden_BLD)
        return logits_BL


class JointElectra(nn.Module):
    """Both towers as one module with one loss, one backward and one clip.

    The towers share the word, position and token-type tables and the embedding LayerNorm; the
    generator's output matrix is the same word table. What is shared stands at the root:
    `embeddings`, and `encoder` where one transformer is both towers. A tower that the objective
    does not need is None; with mlm `generator` has the discriminator's size and is the product.

    Args:
        config: the run's config with `model.vocab_size` set.
        special_ids: ids of the corpus's special tokens by role (`pad unk cls sep mask`); what
            `electric` and `uniform_generator` leave out.

    Raises:
        UserError: the objective is unknown, or the vocabulary size is not known yet.
    """

    def __init__(self, config: RunConfig, special_ids: Mapping[str, int] | None = None) -> None:
        super().__init__()
        objective = objective_named(config.objective.name)
        model, vocab_size = config.model, config.model.vocab_size
        if vocab_size is None:
            raise UserError(
                "model.vocab_size is not set; it comes from the corpus, or set it in [model]"
            )
        self.config = model
        self.objective = config.objective
        self.vocab_size = vocab_size
        self.special_ids = dict(special_ids or {})
        size = (model.num_layers, model.hidden_size, model.num_heads)
        self.backbone = BACKBONES[model.backbone]
        self.embeddings = self.backbone.embeddings(model, vocab_size)
        if objective.generator == "masked" and not model.untied_generator:
            self.encoder = self.backbone.encoder(model, *size)
        self.generator = self._make_generator() if objective.generator else None
        self.discriminator = (
            Discriminator(
                self._discriminator_embeddings(),
                self.backbone.encoder(model, *size) if model.untied_generator else self.encoder,
                self.backbone.discriminator_head(model, model.hidden_size),
            )
            if objective.has_discriminator
            else None
        )
        for module in self.modules():
            if isinstance(module, ENCODERS):
                module.recompute = config.engine.activation_checkpointing
                module.compiled = config.engine.compile
        initialize(self, config.seed, model.initializer_range)

    def _make_generator(self) -> Generator | TwoTowerGenerator:
        model, objective = self.config, OBJECTIVES[self.objective.name]
        size = (model.num_layers, model.hidden_size, model.num_heads)
        if objective.has_discriminator and model.untied_generator:
            size = (
                model.generator_num_layers,
                model.generator_hidden_size,
                model.generator_num_heads,
            )
        embeddings = self.embeddings
        if model.untied_generator_embeddings:
            model = replace(model, embedding_size=size[1])
            embeddings = self.backbone.embeddings(model, self.vocab_size)
        if objective.generator == "two_towers":
            # Backbone bert, as `config.combinations` sees to: so are disentangled embeddings.
            assert isinstance(embeddings, Embeddings)
            head = GeneratorHead(model, 2 * size[1], self.vocab_size)
            return TwoTowerGenerator(embeddings, Encoder(model, *size), Encoder(model, *size), head)
        return Generator(
            embeddings,
            self.backbone.encoder(model, *size) if model.untied_generator else self.encoder,
            self.backbone.generator_head(model, size[1], self.vocab_size),
        )

    def _discriminator_embeddings(self) -> AnyEmbeddings | DisentangledEmbeddings:
        if self.config.embedding_sharing == "tied":
            return self.embeddings
        assert isinstance(self.embeddings, Embeddings)
        return DisentangledEmbeddings(self.embeddings, Embeddings(self.config, self.vocab_size))

    def forward(self, batch: Batch) -> Losses:
        """The losses of one micro-batch under the configured objective."""
        return OBJECTIVES[self.objective.name].loss(self, batch)

    def external_parameters(self) -> list[tuple[nn.Module, Tensor]]:
        """Modules that read a parameter of another module: ZeRO-3 must gather it for them too."""
        found: list[tuple[nn.Module, Tensor]] = []
        if self.generator is not None:
            found.append((self.generator.head, self.generator.embeddings.word.weight))
        for module in self.modules():
            if isinstance(module, DisentangledEmbeddings):
                found += module.external_parameters()
        return found


@torch.no_grad()
def initialize(module: nn.Module, seed: int, std: float) -> None:
    """Fill every parameter from a generator keyed by (seed, its name): no tower shifts another.

    Truncated normal at two deviations; glorot uniform for `embeddings_project` and the
    discriminator's last layer; biases 0 and LayerNorm 1; differences from
    shared embeddings 0. Parameters on the meta device have shapes only, and are left alone.
    A parameter's `init_factor`, where it has one, multiplies the deviation.
    """
    clear_padding(module)
    factors = {n: getattr(p, "init_factor", 1.0) for n, p in module.named_parameters()}
    for name, parameter in stored_parameters(module).items():
        if parameter.is_meta:
            continue
        generator = torch.Generator(device=parameter.device).manual_seed(
            fold(seed, random.INIT_SITE, zlib.crc32(name.encode()))
        )
        if name.endswith("bias") or ".difference." in name:
            parameter.zero_()
        elif "layer_norm" in name:
            parameter.fill_(1.0)
        elif "embeddings_project" in name or name.endswith("head.out.weight"):
            nn.init.xavier_uniform_(parameter, generator=generator)
        else:
            truncated_normal_(parameter, std * factors[name], generator)


def truncated_normal_(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill with a normal distribution cut at two deviations, by inverting its distribution.

    One pass of uniform numbers; `nn.init.trunc_normal_` of torch 2.13 draws six times as long.
    """
    share = math.erf(math.sqrt(2))  # of the normal distribution, within two deviations
    tensor.uniform_(-share, share, generator=generator).erfinv_().mul_(std * math.sqrt(2))
