"""Files of weights: what is not named plain tensors of this model is refused before any use."""

import pytest
import torch

from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model
from deit_tract.models.weights import load_weights, read_weights
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.hostile_weights import odd_tensors


@pytest.fixture(scope="module")
def net():
    return build_model(load_recipe("quickstart", ["model.args.depth=1"]))


def refused(net, content, path) -> str:
    torch.save(content, path)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(net, str(path))
    (line,) = str(caught.value).splitlines()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize("key", ["pos_embed", "head.weight"])
@pytest.mark.parametrize("odd", odd_tensors(torch.ones(1, 2)))
def test_an_odd_tensor_is_refused(net, tmp_path, key, odd):
    state = net.state_dict()
    assert refused(net, {"model": state | {key: odd_tensors(state[key])[odd]}}, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no weights (it is empty)"),
        ({"model": [1]}, "holds no weights (it is of type list)"),
        ({"state_dict": None}, "holds no weights (it is of type NoneType)"),
        ({3: torch.ones(2)}, "holds no weights (a name is of type int)"),
        ({"epoch": 3}, "holds no weights (epoch is of type int)"),
        ({"w": torch.ones(1).expand(10**9)}, "w claims more numbers than there are"),
        ({"w": torch.ones(2).to_sparse()}, "w is a torch.sparse_coo tensor"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "w is of torch.complex64"),
    ],
)
def test_what_is_no_weights_says_why(net, tmp_path, content, message):
    assert message in refused(net, content, tmp_path / "w.pth")


def test_two_names_of_one_tensor_are_refused(tmp_path):
    both = {"blocks.0.gamma_1": torch.ones(2), "blocks.0.ls1.gamma": torch.ones(2)}
    torch.save(both, tmp_path / "w.pth")
    with pytest.raises(UserError, match="has both of DeiT-III's gamma and timm's"):
        read_weights(str(tmp_path / "w.pth"))


def test_another_precision_is_taken(net, tmp_path):
    state = {key: value.double() for key, value in net.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "w.pth")
    load_weights(net, str(tmp_path / "w.pth"))
    assert net.head.weight.dtype == torch.float32
