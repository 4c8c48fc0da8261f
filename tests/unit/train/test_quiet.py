"""Libraries' warnings: what is known to be harmless is silent, everything else is not."""

import warnings

from torch.utils.data import DataLoader

from deit_tract.train.quiet import silence


def test_a_known_warning_is_silent_and_another_of_the_same_module_is_not():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DataLoader([0], num_workers=1000)
        assert len(caught) == 1, "the warning is there"
        silence()
        DataLoader([0], num_workers=1000)
        module = "torch.utils.data.dataloader"
        warnings.warn_explicit("another", UserWarning, "dataloader.py", 1, module)
        assert [str(one.message) for one in caught[1:]] == ["another"]
