"""The tables of data sets: each has its reader, and a recipe can name what can be trained on."""

import json
import subprocess
import sys
from typing import get_args

from deit_tract.data.sets.load import READERS
from deit_tract.recipe.datasets import DATASETS, names_for
from deit_tract.recipe.settings.recipe import Data


def test_every_set_has_facts_and_a_reader():
    assert list(DATASETS) == list(READERS)
    names = get_args(Data.model_fields["name"].annotation)
    assert list(names) == sorted(set(DATASETS) - {"imagenet_v2"})
    assert names_for("detect") == ["synthetic", "voc", "voc2007"]
    assert not set(names_for("classify")) & {"voc", "voc2007", "imagenet_v2"}


def test_facts_are_known_without_torch():
    code = "import sys, json, deit_tract.recipe.datasets; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
