"""What is known of each optimizer before it is built.

To add an optimizer, add its row here and the line that builds it in deit_tract/optim/build.py.
"""

from typing import NamedTuple


class OptimizerFacts(NamedTuple):
    moments: int  # float32 values that it keeps per parameter
    momentum_buffer: bool = False  # one value more, unless optim.momentum is 0
    whole_tensors: str = ""  # what of it needs whole tensors, which ZeRO from stage 1 cuts up
    clips_itself: bool = False  # applies optim.clip_grad inside its step and keeps the norm


OPTIMIZERS = {
    "lamb": OptimizerFacts(2, whole_tensors="LAMB's trust ratio", clips_itself=True),
    "adamw": OptimizerFacts(2),
    "adam": OptimizerFacts(2),
    "sgd": OptimizerFacts(0, momentum_buffer=True),
}
