"""Shared by the tests of safety."""

import os
import pickle

import torch

# ---- files that would run a command --------------------------------------------------------------


class Payload:
    """Pickled, it asks whoever loads it to make a folder."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def malicious(path, target, form: str) -> None:
    """The payload as torch.save writes it, as a bare pickle, or hidden beside weights."""
    if form == "torch":
        torch.save({"model": Payload(target)}, path)
    elif form == "legacy":
        torch.save({"model": Payload(target)}, path, _use_new_zipfile_serialization=False)
    elif form == "beside":
        torch.save({"model": {"w": torch.ones(2)}, "args": Payload(target)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(target), protocol=2))


FORMS = ["torch", "legacy", "beside", "pickle"]
