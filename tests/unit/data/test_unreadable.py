"""Images that cannot be read are replaced, and counted."""

import numpy as np
import pytest
import torch

from deit_tract.common.errors import UserError
from deit_tract.data.loader import Replaced, Views, checked, loader, stacked
from deit_tract.data.stream import View


class Broken:
    """Twelve images of which some cannot be read."""

    def __init__(self, bad):
        self.bad = bad

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index in self.bad:
            raise UserError(f"{index}.png", "cannot be read as an image")
        return np.full(3, index), index


def read(bad, workers=0, limit=3):
    views = Views(Broken(bad), lambda image: image + np.random.random(), replace=True)
    keys = [[View(index, 100 + index) for index in range(4 * b, 4 * b + 4)] for b in range(3)]
    replaced = Replaced(limit)
    return list(checked(loader(views, keys, workers, False, stacked), replaced)), replaced


def test_an_unreadable_image_is_replaced_by_another_the_same_everywhere(capsys):
    (batches, replaced), (others, _) = read({2, 7}), read({2, 7}, workers=2)
    assert replaced.errors == {
        "2.png: cannot be read as an image",
        "7.png: cannot be read as an image",
    }
    assert (
        "warning: 2.png: cannot be read as an image; replaced (1 of at most 3)"
        in capsys.readouterr().err
    )
    for one, other in zip(batches, others, strict=True):
        assert one.keys() == other.keys() == {"image", "label"}
        assert all(torch.equal(one[name], other[name]) for name in one)
    labels = [label for batch in batches for label in batch["label"].tolist()]
    assert [label for index, label in enumerate(labels) if index not in (2, 7)] == [
        index for index in range(12) if index not in (2, 7)
    ]
    assert not {2, 7} & set(labels)
    plain = Views(Broken({7}), lambda image: image + np.random.random())[View(0, 100)]
    assert plain.error is None and not plain.replaced
    assert (plain.data["image"] == batches[0]["image"][0].numpy()).all(), (
        "a good image is as without the setting"
    )


def test_too_many_unreadable_images_end_the_run():
    with pytest.raises(
        UserError, match=r"data.skip_unreadable: 4 images cannot be read; the last: 9.png"
    ):
        read({1, 3, 8, 9})
    with pytest.raises(UserError, match="cannot be read as an image"):
        read(set(range(12)), limit=100)
