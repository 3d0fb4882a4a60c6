"""Where a process of one device computes."""

import torch

from electra_dist.errors import UserError


def device_named(name: str) -> torch.device:
    """`auto` is CUDA where there is some, else the CPU; any other name is torch's own.

    Raises:
        UserError: CUDA was asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if name.startswith("cuda") and not has_cuda:
        raise UserError(f"device {name!r} was asked for and there is none; use cpu")
    return torch.device(name)
