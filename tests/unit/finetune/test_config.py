from pathlib import Path
from typing import Any

import pytest

from electra_dist.errors import UserError
from electra_dist.finetune.config import FinetuneConfig, parse_seeds
from electra_dist.finetune.metrics import METRICS
from electra_dist.finetune.tasks import TASKS


def config(**changes: Any) -> FinetuneConfig:
    paths: dict[str, Any] = {name: Path(name) for name in ("model", "out", "train", "dev")}
    return FinetuneConfig(**paths, **({"task": "sst2"} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None}, "give --task NAME, or --text COLUMN and --label COLUMN"),
        ({"task": None, "text": "t"}, "give --task NAME"),
        ({"task": "sst"}, "task 'sst' is not one of .* did you mean 'sst2'"),
        ({"kind": "regression"}, "kind 'regression' does not go with task 'sst2'"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_length": 4}, "max_length must be at least 5"),
        ({"threads": -1}, "threads must be at least 1, not -1"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1, not 1.5"),
        ({"weight_decay": -0.1}, "weight_decay must be in"),
        ({"warmup_fraction": 1.0}, "warmup_fraction must be in"),
        ({"seeds": ()}, "seeds must be one or more different numbers"),
        ({"seeds": (1, 1)}, "seeds must be one or more different numbers"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**changes)


def test_seeds_are_a_count_or_a_list() -> None:
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("3,") == (3,)
    assert parse_seeds("7, 5") == (7, 5)
    for text in ("0", "-1", "x", "1,x", ""):
        with pytest.raises(UserError, match="seeds must be"):
            parse_seeds(text)


def test_columns_given_with_a_task_go_over_its_own() -> None:
    task = config(text="review").resolved_task()
    assert (task.text, task.label, task.columns_without_header) == ("review", "label", ())
    assert config().resolved_task() is TASKS["sst2"]


def test_every_named_task_has_a_kind_and_known_metrics() -> None:
    for name, task in TASKS.items():
        assert task.name == name
        assert task.kind is not None
        assert task.metrics
        assert set(task.metrics) <= set(METRICS)
        assert (task.target_range is not None) == (task.kind == "regression")
        assert not task.columns_without_header or {task.text, task.label} <= set(
            task.columns_without_header
        )
