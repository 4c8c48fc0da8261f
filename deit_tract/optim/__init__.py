"""Parameter updates."""

from deit_tract.optim.lamb import Lamb

__all__ = ["Lamb"]
