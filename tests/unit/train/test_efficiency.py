from dataclasses import replace

import pytest
import torch

from electra_dist.config.flops import flops_of_row
from electra_dist.config.recipes import RECIPES
from electra_dist.engine.protocol import Fragment
from electra_dist.runtime.peak import Peak
from electra_dist.train.efficiency import Efficiency
from electra_dist.train.loop import Timing

CPU = torch.device("cpu")
CONFIG = RECIPES["tiny"]()
PEAK = Peak(flops_per_s=1e12, source="for a test")


def efficiency(peak: Peak | None = PEAK, world_size: int = 2) -> Efficiency:
    fragments = [
        Fragment("w", "master", 0, torch.zeros(10)),
        Fragment("w", "exp_avg", 0, torch.zeros(10)),
        Fragment("w", "exp_avg_sq", 0, torch.zeros(10)),
    ]
    return Efficiency(CONFIG, world_size, CPU, peak, fragments, save_buffer_bytes=240)


def test_mfu_is_model_flops_over_the_peak_of_all_ranks() -> None:
    rows = 32
    tokens = rows * CONFIG.data.sequence_length
    values = efficiency().metrics(tokens=tokens, step_seconds=0.5)
    per_second = rows * flops_of_row(CONFIG) / 0.5
    assert values["model_tflops_per_s"] == pytest.approx(per_second / 1e12)
    assert values["mfu"] == pytest.approx(per_second / 2e12)


def test_padding_is_no_work_of_the_model() -> None:
    full, half = (efficiency().metrics(tokens=n, step_seconds=1.0)["mfu"] for n in (4096, 2048))
    assert half == pytest.approx(full / 2)


def test_without_a_known_peak_there_is_no_mfu() -> None:
    values = efficiency(peak=None).metrics(tokens=100, step_seconds=1.0)
    assert "mfu" not in values
    assert values["model_tflops_per_s"] > 0


def test_memory_is_told_by_kind() -> None:
    values = efficiency().metrics(tokens=100, step_seconds=1.0)
    assert values["memory_master_bytes"] == 40
    assert values["memory_moments_bytes"] == 80
    assert values["memory_save_buffers_bytes"] == 240
    assert values["memory_peak_bytes"] > 10**7  # this process, torch in it


def test_a_line_has_the_share_of_waiting_for_data() -> None:
    values = Timing(data_wait_seconds=0.25, step_seconds=1.0).metrics(4096, None)
    assert values["data_wait"] == 0.25
    assert values["tokens_per_s"] == 4096
    assert values["exposed_communication"] == 0.0
    assert "mfu" in Timing(data_wait_seconds=0.25, step_seconds=1.0).metrics(4096, efficiency())


def test_the_knob_must_be_positive() -> None:
    with pytest.raises(Exception, match=r"metrics\.peak_tflops"):
        replace(CONFIG.metrics, peak_tflops=0.0)


def test_the_share_of_the_step_in_collectives_is_told() -> None:
    values = Timing(data_wait_seconds=0.0, step_seconds=2.0, communication_seconds=0.5).metrics(
        4096, None
    )
    assert (values["communication_seconds"], values["exposed_communication"]) == (0.5, 0.25)
