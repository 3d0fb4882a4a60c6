import pytest
import torch

from electra_dist.runtime.peak import measured_gemm, peak_of, stated_tflops


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100-PCIE-40GB", "fp32", 19.5),
        ("NVIDIA A10", "bf16", 125.0),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("Tesla T4", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", None),
    ],
)
def test_stated_peaks_go_by_whole_words(name: str, precision: str, tflops: float | None) -> None:
    assert stated_tflops(name, precision) == tflops


def test_what_the_config_gives_comes_first() -> None:
    peak = peak_of(torch.device("cpu"), "fp32", given_tflops=2.0)
    assert peak is not None
    assert (peak.flops_per_s, peak.source) == (2e12, "metrics.peak_tflops")


def test_of_a_cpu_it_is_measured_and_says_so() -> None:
    peak = peak_of(torch.device("cpu"), "fp32", None)
    assert peak is not None
    assert "measured" in peak.source
    assert 1e8 < measured_gemm() < 1e14
