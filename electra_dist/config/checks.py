"""What a config field must satisfy; an error says field, value, rule and remedy."""

from __future__ import annotations

import math

from electra_dist.errors import UserError


def require(condition: bool, field_name: str, value: object, rule: str, remedy: str) -> None:
    """Raise a UserError with all four unless `condition` holds."""
    if not condition:
        raise UserError(f"{field_name} = {value!r}: {rule}; {remedy}")


def require_positive(section: str, **values: float | None) -> None:
    """Each value that is given must be above 0 and finite."""
    for name, value in values.items():
        if value is not None:
            require(
                0 < value < math.inf,
                f"{section}.{name}",
                value,
                "must be above 0 and finite",
                "give a positive number",
            )


def require_share(section: str, **values: float) -> None:
    """Each value is a share: in [0, 1)."""
    for name, value in values.items():
        require(
            0.0 <= value < 1.0,
            f"{section}.{name}",
            value,
            "is a share and must lie in [0, 1)",
            "write 0.1 for 10 %",
        )
