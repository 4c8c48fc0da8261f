"""DeiT-III training with the first layer trained by TrAct."""

__version__ = "0.1.0"
