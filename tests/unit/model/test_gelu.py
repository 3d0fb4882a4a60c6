from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from electra_dist.model.gelu import gelu
from electra_dist.model.linear import linear

MAY_WARN = pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself


class Graphs:
    """Compiles as torch's own compiler cuts forward from backward, and shows what it was given."""

    def __init__(self) -> None:
        self.forward: list[str] = []
        self.backward: list[str] = []
        self.backend = aot_autograd(
            fw_compiler=lambda graph, _: self._compile(graph, self.forward),
            bw_compiler=lambda graph, _: self._compile(graph, self.backward),
            partition_fn=min_cut_rematerialization_partition,
        )

    def _compile(self, graph: Any, operations: list[str]) -> Any:
        operations += [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        return make_boxed_func(graph.forward)


def ffn(values_TD: Tensor, inner: nn.Linear, outer: nn.Linear) -> Tensor:
    return linear(gelu(linear(values_TD, inner)), outer)


def parts() -> tuple[Tensor, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return torch.randn(6, 4, requires_grad=True), nn.Linear(4, 8), nn.Linear(8, 4)


@MAY_WARN
@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
def test_compiled_gelu_has_the_values_and_the_gradient_of_the_plain_one(
    dtype: torch.dtype, off: float
) -> None:
    torch._dynamo.reset()
    graphs = Graphs()
    found = torch.compile(gelu, backend=graphs.backend)
    values_T = torch.linspace(-40.0, 40.0, 1601, dtype=dtype)
    plain_T, compiled_T = (values_T.clone().requires_grad_() for _ in range(2))
    F.gelu(plain_T).sum().backward()
    activated_T = found(compiled_T)
    torch.testing.assert_close(activated_T, F.gelu(values_T), rtol=off, atol=off)
    activated_T.sum().backward()
    assert "aten.erf.default" in graphs.forward  # it has not run as it is
    torch.testing.assert_close(compiled_T.grad, plain_T.grad, rtol=off, atol=off)


@MAY_WARN
def test_the_compiled_backward_pass_makes_no_activations_again() -> None:
    torch._dynamo.reset()
    graphs = Graphs()
    values_TD, inner, outer = parts()
    compiled = torch.compile(ffn, backend=graphs.backend)
    compiled(values_TD, inner, outer).sum().backward()
    assert "aten.erf.default" in graphs.forward
    assert not {"aten.erf.default", "aten.exp.default"} & set(graphs.backward)
    assert graphs.backward.count("aten.mul.Tensor") == 1


@MAY_WARN
def test_without_a_gradient_no_slope_is_made() -> None:
    torch._dynamo.reset()
    graphs = Graphs()
    values_TD, inner, outer = parts()
    with torch.no_grad():
        found = torch.compile(ffn, backend=graphs.backend)(values_TD, inner, outer)
    torch.testing.assert_close(found, outer(F.gelu(inner(values_TD))))
    assert "aten.gelu.default" in graphs.forward
    assert "aten.exp.default" not in graphs.forward
