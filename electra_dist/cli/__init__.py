"""The words that a user types; what they do is in `commands`. No heavy import: help is instant."""

from electra_dist.cli.main import main

__all__ = ["main"]
