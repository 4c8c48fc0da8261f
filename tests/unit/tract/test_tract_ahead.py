"""TrAct's factor made beside the forward pass: the order of streams without a GPU, equal gradients
with one.
"""

import contextlib
import copy

import pytest
import torch
from torch import nn

from deit_tract.tract import TrAct, gradient, gram
from deit_tract.tract import layer as layers


class Streams:
    """Stands for torch.cuda and writes down what is asked of it; work runs at once."""

    def __init__(self):
        self.log, self.side = [], None

    def Stream(self, device):
        return Recorded("side", self)

    def current_stream(self, device):
        return Recorded("main", self)

    @contextlib.contextmanager
    def stream(self, stream):
        self.side = stream
        yield
        self.side = None


class Recorded:
    def __init__(self, name, streams):
        self.name, self.streams = name, streams

    def wait_stream(self, other):
        self.streams.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.streams.log.append(f"{self.name} waits for {event}")

    def record_event(self):
        self.streams.log.append(f"{self.name} marks")
        return f"the mark of {self.name}"


@pytest.fixture
def streams(monkeypatch):
    """A CPU that poses as a device with streams."""
    streams = Streams()

    def made(matrix, rows, lam, factorise=gram.factorise):
        streams.log.append("factor on " + ("side" if streams.side else "main"))
        return factorise(matrix, rows, lam)

    monkeypatch.setattr(layers, "can_run_ahead", lambda x: True)
    monkeypatch.setattr(gram, "factorise", made)
    monkeypatch.setattr(gradient, "_side_stream", streams.Stream)
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)

    def recorded(tensor, stream):
        streams.log.append(f"{stream.name} keeps {tuple(tensor.shape)}")

    monkeypatch.setattr(torch.Tensor, "record_stream", recorded)
    return streams


CASES = {
    "patches": (nn.Conv2d(3, 16, 4, 4), (8, 3, 16, 16), (1, 48, 48)),
    "groups": (nn.Conv2d(4, 8, 3, groups=2), (8, 4, 16, 16), (2, 18, 18)),
    "linear": (nn.Linear(12, 5), (40, 12), (1, 12, 12)),
    "fewer rows than columns": (nn.Linear(40, 5), (12, 40), (1, 12, 12)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_factor_is_made_and_awaited_in_order(streams, case):
    layer, shape, factor = CASES[case]
    x, ours, late = torch.randn(shape), TrAct(copy.deepcopy(layer)), TrAct(copy.deepcopy(layer))
    z = ours(x)
    begun = ["side waits for main", "factor on side", f"side keeps {shape}", "side marks"]
    assert streams.log == begun
    g = torch.randn_like(z)
    z.backward(g)
    assert streams.log[len(begun) :] == [
        "main waits for the mark of side",
        f"main keeps {factor}",
        f"main keeps {factor[:1]}",
    ]
    late.ahead = False
    late(x).backward(g)
    assert torch.equal(ours.weight.grad, late.weight.grad)
    assert streams.log[len(begun) + 3 :] == ["factor on main"]


def test_every_lane_has_its_own(streams):
    layer = TrAct(nn.Linear(6, 3))
    layer.lanes = 4
    layer(torch.randn(32, 6)).sum().backward()
    assert (
        streams.log.count("factor on side")
        == streams.log.count("main waits for the mark of side")
        == 4
    )


@pytest.mark.parametrize("why", ["evaluation", "frozen", "batch"])
def test_nothing_is_begun_in_vain(streams, why):
    layer = TrAct(nn.Linear(6, 3), gram="batch" if why == "batch" else "lane")
    layer.weight.requires_grad_(why != "frozen")
    with torch.set_grad_enabled(why != "evaluation"):
        layer(torch.randn(32, 6))
    assert streams.log == []


def test_a_cpu_waits_for_the_backward_pass():
    assert not gradient.can_run_ahead(torch.randn(4, 6))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_computes_the_same_beside_and_after():
    """Inputs made and freed each step, so that memory used anew too early would show."""
    early = TrAct(nn.Conv2d(3, 384, 16, 16)).cuda()
    late = TrAct(copy.deepcopy(early))
    late.ahead = False
    for _ in range(100):
        x = torch.randn(64, 3, 224, 224, device="cuda") * 0.5
        grads = []
        for layer in (early, late):
            layer.weight.grad = None
            z = layer(x.clone())
            z = (z.flatten(2) @ z.flatten(2).mT).relu()  # the device has something else to do
            z.mean().backward()
            grads.append(layer.weight.grad)
        assert (grads[0] - grads[1]).norm() <= 1e-5 * grads[
            1
        ].norm()  # what a GPU adds up, it adds in any order
