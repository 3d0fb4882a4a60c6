"""What a DeepSpeed file says of ZeRO, as far as memory and traffic follow from it. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from electra_dist.config.schema import RunConfig
from electra_dist.errors import UserError

# The names that DeepSpeed 0.19 reads, where they differ from ours.
_NAMES = {
    "parameter_persistence_threshold": "stage3_param_persistence_threshold",
    "max_reuse_distance": "stage3_max_reuse_distance",
}

_LAYERS = ".layers."


@dataclass(frozen=True, kw_only=True)
class ZeroSettings:
    """Keys of `zero_optimization`; the defaults are DeepSpeed's own. Sizes are in elements."""

    reduce_bucket_size: int = 500_000_000
    """Gradients are reduced in portions of so many."""
    contiguous_gradients: bool = True
    """Stages 1 and 2 copy gradients into one flat buffer as they come."""
    overlap_comm: bool | None = None
    """Reduce beside the backward pass, with a second buffer. None: at stage 3 alone."""
    use_multi_rank_bucket_allreduce: bool = True
    """Stages 1 and 2 all-reduce a bucket; false reduces each part of it to its owner."""
    parameter_persistence_threshold: int = 100_000
    """Stage 3 keeps parameters of up to so many whole on every rank."""
    max_reuse_distance: int = 1_000_000_000
    """Stage 3 keeps a gathered parameter that is needed again within so many elements."""
    is_offloaded: bool = False
    """Masters and moments lie in host memory."""

    def bucket_elements(self, num_elements: int) -> int:
        """Of a bucket as an engine asks for it: no more than all `num_elements` gradients fill.

        DeepSpeed sets its memory aside whole: 2 GB by its own number, for 54 MB of `small`.
        """
        return min(num_elements, self.reduce_bucket_size)

    @classmethod
    def read(cls, path: str | None) -> ZeroSettings:
        """The settings of `engine.deepspeed_config`; the defaults where there is none.

        Raises:
            UserError: the file cannot be read, or a size in it is no number.
        """
        if path is None:
            return cls()
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            zero: dict[str, Any] = dict(values.get("zero_optimization", {}))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"engine.deepspeed_config = {path!r} is not readable JSON ({error}); "
                "see deepspeed_configs/"
            ) from None
        found: dict[str, Any] = {"is_offloaded": _is_offloaded(zero)}
        for field in fields(cls):
            key = _NAMES.get(field.name, field.name)
            if zero.get(key, "auto") != "auto":  # the word for DeepSpeed's own
                found[field.name] = _checked(path, key, zero[key], field.default)
        return cls(**found)


def layers_are_leaves(config: RunConfig) -> bool:
    """Whether stage 3 gathers a layer as a whole, and not product by product.

    Not where both towers run the same layers: DeepSpeed 0.19 hands a leaf's gradients in once for
    each use, and stops where one bucket gets the same twice.
    """
    return config.model.untied_generator


def gathered_together(names: Iterable[str], *, leaves: bool) -> dict[str, list[str]]:
    """Parameters that stage 3 gathers at once, by module.

    Args:
        names: of parameters, in the order of the joint module.
        leaves: `layers_are_leaves`.
    """
    together: dict[str, list[str]] = {}
    for name in names:
        tower, in_layer, rest = name.partition(_LAYERS)
        is_whole = leaves and in_layer
        module = f"{tower}{_LAYERS}{rest.split('.')[0]}" if is_whole else name.rpartition(".")[0]
        together.setdefault(module, []).append(name)
    return together


def kept_for_backward(
    sizes: dict[str, int], max_reuse_distance: int, *, leaves: bool = True
) -> set[str]:
    """Parameters that stage 3 does not release between the forward and the backward pass.

    DeepSpeed keeps what it meets again within the distance, counting the elements that it passes:
    forward to the end, and back. For a leaf it counts by towers, and meets the layer's own one as
    soon as the backward pass begins.

    The order of the joint module is taken for that of the passes: so it is for the objectives with
    two towers and backbone `bert`. Others may gather a table or a head once more, or less (with
    zero3_small_shards.json `modern` gathers 0.69 of what is said, `mlm` 0.82); with a distance that
    holds the model, DeepSpeed's default for all but the largest, nothing depends on it.

    Args:
        sizes: elements of each parameter, in the order of the joint module.
        max_reuse_distance: in elements.
        leaves: `layers_are_leaves`.
    """
    kept: set[str] = set()
    passed = 0
    for module, names in reversed(gathered_together(sizes, leaves=leaves).items()):
        is_leaf = leaves and _LAYERS in module
        if (passed if is_leaf else 2 * passed) >= max_reuse_distance:
            break
        kept.update(names)
        passed += sum(sizes[name] for name in names)
    return kept


def _is_offloaded(zero: dict[str, Any]) -> bool:
    place = zero.get("offload_optimizer")
    return isinstance(place, dict) and place.get("device", "none") != "none"


def _checked(path: str, key: str, value: Any, default: Any) -> Any:
    """The value, sizes such as 5e8 as whole numbers."""
    if isinstance(default, bool) or default is None:
        if isinstance(value, bool) or value is default:
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return int(value)
    raise UserError(
        f"{path}: zero_optimization.{key} = {value!r} is not allowed; give "
        f"{'true or false' if isinstance(default, bool | None) else 'a number'}"
    )
