"""Ways to train the two towers: every objective, and every way of sharing and sampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from electra_dist.config.schema import RunConfig

SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
"""Of made-up vocabularies."""

_UNTIED = {"model": {"untied_generator_embeddings": True}}
# A window as wide as the rows: torch counts whole products, whatever a mask leaves out. And a word
# table with padding: 8200 rows for 8192 ids.
_MODERN = {
    "backbone": "modern",
    "local_attention_window": 1024,
    "pad_vocab_to_multiple_of": 100,
}
_APART = {"model": {"embedding_sharing": "gradient_disentangled"}}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "electra": {},
    "mlm": {"objective": {"name": "mlm"}},
    "electric": {"objective": {"name": "electric"}},
    "uniform generator": {"objective": {"name": "uniform_generator"}},
    "untied tables": _UNTIED,
    "one transformer": {"model": {"untied_generator": False}},
    "disentangled": _APART,
    "electric, untied tables": {"objective": {"name": "electric"}, **_UNTIED},
    "electric, disentangled": {"objective": {"name": "electric"}, **_APART},
    "sampling without dropout": {"objective": {"sampling_dropout": False}},
    "one transformer, sampling without dropout": {
        "model": {"untied_generator": False},
        "objective": {"sampling_dropout": False},
    },
    "modern": {"model": _MODERN},
    "modern, mlm": {"model": _MODERN, "objective": {"name": "mlm"}},
    "modern, untied tables": {"model": {**_MODERN, "untied_generator_embeddings": True}},
    "modern, one transformer": {"model": {**_MODERN, "untied_generator": False}},
    "without the original": {"objective": {"disallow_correct": True, "temperature": 2.0}},
}


def variant_of(config: RunConfig, name: str) -> RunConfig:
    """The config with the knobs of that variant."""
    sections = {
        section: replace(getattr(config, section), **values)
        for section, values in VARIANTS[name].items()
    }
    # At once: the parts are checked against each other.
    return replace(config, **sections)
