import pytest
import torch

from electra_dist.engine.ds_start import named_by_device


@pytest.mark.parametrize("launcher", [{}, {"OMPI_COMM_WORLD_LOCAL_RANK": "3"}])
def test_a_rank_that_sees_one_device_is_named_by_it_while_deepspeed_starts(
    launcher: dict[str, str],
) -> None:
    environ = {"LOCAL_RANK": "3", "RANK": "7", **launcher}
    before = dict(environ)
    with named_by_device(torch.device("cuda", 0), environ):
        assert environ == {**dict.fromkeys(("LOCAL_RANK", *launcher), "0"), "RANK": "7"}
    assert environ == before
    with named_by_device(torch.device("cpu"), environ):
        assert environ == before
