import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import EngineConfig, RunConfig
from electra_dist.engine.ds_config import (
    ALLOWED_KEYS,
    check_deepspeed_config,
    deepspeed_config,
    uses_nvme,
)
from electra_dist.errors import UserError
from electra_dist.model.electra import JointElectra

CONFIGS = Path(__file__).parents[3] / "deepspeed_configs"
WithFile = Callable[..., RunConfig]


@pytest.fixture
def with_file(tmp_path: Path, config: RunConfig) -> WithFile:
    """A config at a ZeRO stage, with a DeepSpeed file of the given content."""

    def make(content: Any, stage: int = 2) -> RunConfig:
        path = tmp_path / "ds.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        engine = EngineConfig(zero_stage=stage, deepspeed_config=str(path))  # type: ignore[arg-type]
        return replace(config, engine=engine)

    return make


def test_batch_precision_and_stage_come_from_the_runs_config(config: RunConfig) -> None:
    config = replace(config, engine=EngineConfig(zero_stage=3, precision="bf16"))
    check_deepspeed_config(config)
    found = deepspeed_config(config, num_passes=5)
    assert found["train_micro_batch_size_per_gpu"] == 2
    assert found["gradient_accumulation_steps"] == 5
    bucket = sum(p.numel() for p in JointElectra(config).parameters())
    assert found["gradient_clipping"] == 0.0
    assert found["zero_optimization"] == {"stage": 3, "reduce_bucket_size": bucket}
    assert found["bf16"] == {"enabled": True}
    # DeepSpeed multiplies these out itself and refuses a product that disagrees with the ranks.
    assert "train_batch_size" not in found
    assert "optimizer" not in found
    json.dumps(found)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_clip_is_left_to_our_optimizer(config: RunConfig, stage: Literal[0, 1, 2, 3]) -> None:
    found = deepspeed_config(replace(config, engine=EngineConfig(zero_stage=stage)), 1)
    assert found["gradient_clipping"] == 0.0


def test_fp32_turns_bf16_off(config: RunConfig) -> None:
    config = replace(config, engine=EngineConfig(zero_stage=1))
    assert deepspeed_config(config, 1)["bf16"] == {"enabled": False}


def test_fp16_scales_by_what_we_say_and_never_by_its_own_scaler(config: RunConfig) -> None:
    engine = EngineConfig(zero_stage=2, precision="fp16", initial_loss_scale=512.0)
    found = deepspeed_config(replace(config, engine=engine), 1)
    # 0 would make the scale DeepSpeed's, out of reach of our checkpoints.
    assert found["fp16"] == {"enabled": True, "loss_scale": 512.0}
    assert found["bf16"] == {"enabled": False}


def test_weights_may_lie_on_nvme_and_their_masters_in_host_memory(config: RunConfig) -> None:
    engine = EngineConfig(zero_stage=3, deepspeed_config=str(CONFIGS / "zero3_nvme.json"))
    config = replace(config, engine=engine)
    assert uses_nvme(config)
    found = deepspeed_config(config, 1)
    assert found["zero_optimization"]["offload_param"]["device"] == "nvme"
    assert found["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert found["aio"]["block_size"] == 2**20


def test_each_shipped_file_is_accepted_and_described(config: RunConfig) -> None:
    words = (CONFIGS / "README.md").read_text()
    for path in CONFIGS.glob("*.json"):
        stage = int(path.stem.removeprefix("zero")[0])
        engine = EngineConfig(zero_stage=stage, deepspeed_config=str(path))  # type: ignore[arg-type]
        check_deepspeed_config(replace(config, engine=engine))
        assert f"`{path.name}`" in words


def test_zero_and_communication_keys_of_a_file_are_added(with_file: WithFile) -> None:
    extra = {
        "zero_optimization": {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 1000},
        "communication_data_type": "fp32",
    }
    config = with_file(extra)
    check_deepspeed_config(config)
    found = deepspeed_config(config, 1)
    assert found["zero_optimization"] == extra["zero_optimization"]
    assert found["communication_data_type"] == "fp32"
    assert found["gradient_clipping"] == 0.0


def test_a_bucket_holds_all_gradients_or_what_the_file_says(
    config: RunConfig, with_file: WithFile
) -> None:
    # Its memory is set aside whole; by DeepSpeed's own number that is 2 GB.
    num_elements = sum(p.numel() for p in JointElectra(config).parameters())
    assert deepspeed_config(config, 1)["zero_optimization"]["reduce_bucket_size"] == num_elements
    for asked, taken in ((10 * num_elements, num_elements), (1000, 1000)):
        extra = {"zero_optimization": {"reduce_bucket_size": asked}}
        found = deepspeed_config(with_file(extra), 1)["zero_optimization"]
        assert found["reduce_bucket_size"] == taken


@pytest.mark.parametrize(
    "zero",
    [
        {"reduce_bucket_size": "5e8"},
        {"reduce_bucket_size": math.inf},
        {"contiguous_gradients": 1},
        {"compute_grad_norm": False},
    ],
)
def test_what_a_run_could_not_go_on_with_is_refused_before_it_starts(
    zero: dict[str, Any], with_file: WithFile
) -> None:
    with pytest.raises(UserError, match=rf"zero_optimization\.{next(iter(zero))} = "):
        check_deepspeed_config(with_file({"zero_optimization": zero}))


def test_auto_is_deepspeeds_own_number(config: RunConfig, with_file: WithFile) -> None:
    zero = {"reduce_bucket_size": "auto", "overlap_comm": None}
    mine = with_file({"zero_optimization": zero})
    check_deepspeed_config(mine)
    size = deepspeed_config(mine, 1)["zero_optimization"]["reduce_bucket_size"]
    assert size == deepspeed_config(config, 1)["zero_optimization"]["reduce_bucket_size"]


def test_a_file_need_not_name_the_stage(with_file: WithFile) -> None:
    config = with_file({"zero_optimization": {"overlap_comm": True}}, stage=3)
    check_deepspeed_config(config)
    bucket = sum(p.numel() for p in JointElectra(config).parameters())
    expected = {"overlap_comm": True, "stage": 3, "reduce_bucket_size": bucket}
    assert deepspeed_config(config, 1)["zero_optimization"] == expected


@pytest.mark.parametrize(
    "key",
    [
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "optimizer",
        "scheduler",
        "fp16",
        "bf16",
        "steps_per_print",
        "zero_optimisation",
    ],
)
def test_a_key_that_the_runs_config_owns_is_refused_by_name(key: str, with_file: WithFile) -> None:
    config = with_file({"zero_optimization": {"stage": 2}, key: {}})
    for check in (check_deepspeed_config, lambda c: deepspeed_config(c, 1)):
        with pytest.raises(UserError) as caught:
            check(config)
        message = str(caught.value)
        assert f"'{key}'" in message
        assert str(config.engine.deepspeed_config) in message
        assert all(allowed in message for allowed in ALLOWED_KEYS)


def test_a_file_of_another_stage_is_refused_with_both_numbers(with_file: WithFile) -> None:
    config = with_file({"zero_optimization": {"stage": 3}}, stage=1)
    for check in (check_deepspeed_config, lambda c: deepspeed_config(c, 1)):
        with pytest.raises(UserError, match=r"stage = 3, .*= 1; set engine\.zero_stage = 3"):
            check(config)


@pytest.mark.parametrize("content", ["{", "", "[1]", "3", '{"zero_optimization": 2}', "\x00"])
def test_a_file_that_is_no_json_object_is_refused(content: str, with_file: WithFile) -> None:
    with pytest.raises(UserError, match=r"ds\.json.*(JSON)"):
        check_deepspeed_config(with_file(content))


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path, config: RunConfig) -> None:
    for path, words in (
        (tmp_path / "no.json", r"no\.json' does not exist"),
        (tmp_path, "is not readable JSON"),
    ):
        engine = EngineConfig(deepspeed_config=str(path))
        with pytest.raises(UserError, match=words):
            check_deepspeed_config(replace(config, engine=engine))


@pytest.mark.parametrize(
    "zero",
    [
        {"offload_optimizer": {"device": "nvme"}},
        {"offload_param": {"device": "nvme"}},
        {"offload_param": {"device": "nvme"}, "offload_optimizer": {"device": "nvme"}},
        {"mics_shard_size": 2},
        {"zero_hpz_partition_size": 2},
    ],
)
def test_state_that_no_checkpoint_would_reach_is_refused(
    zero: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    engine = EngineConfig(zero_stage=3, deepspeed_config=str(path))
    with pytest.raises(UserError, match=r"checkpoints (do not )?reach"):
        check_deepspeed_config(replace(RECIPES["tiny"](), engine=engine))
