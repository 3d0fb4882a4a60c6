import torch

from electra_dist.model.places import in_rows, tokens_of


def test_tokens_leave_their_rows_and_return_with_zeros_where_none_was_computed() -> None:
    rows_BLD = torch.randn(2, 3, 4)
    places_T = torch.tensor([0, 1, 3, 5])
    tokens_TD = tokens_of(rows_BLD, places_T)
    assert torch.equal(tokens_TD, rows_BLD.view(6, 4)[[0, 1, 3, 5]])
    back_BLD = in_rows(tokens_TD, 2, 3, places_T)
    wanted_BLD = rows_BLD.clone()
    wanted_BLD.view(6, 4)[[2, 4]] = 0.0
    assert torch.equal(back_BLD, wanted_BLD)
    assert torch.equal(in_rows(tokens_of(rows_BLD, None), 2, 3, None), rows_BLD)


def test_their_gradients_are_those_of_finite_differences() -> None:
    places_T = torch.tensor([5, 0, 3])
    rows_BLD = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    tokens_TD = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: tokens_of(rows, places_T), rows_BLD)
    assert torch.autograd.gradcheck(lambda tokens: in_rows(tokens, 2, 3, places_T), tokens_TD)


def test_torch_knows_the_shapes_of_both_for_its_compiler() -> None:
    places_T = torch.tensor([0, 1, 3, 5])
    for operation, arguments in (
        (torch.ops.electra_dist.take.default, (torch.randn(6, 4), places_T)),
        (torch.ops.electra_dist.put.default, (torch.randn(4, 4), places_T, 6)),
    ):
        torch.library.opcheck(operation, arguments, test_utils=("test_schema", "test_faketensor"))
