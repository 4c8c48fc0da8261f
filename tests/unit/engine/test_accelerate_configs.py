"""The shipped configurations of accelerate launch: what each asks for."""

import argparse

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

from tests.helpers.accelerate_configs import FOLDER

FILES = sorted(FOLDER.glob("*.yaml"))
OURS = {"gpu1": (1, 1), "node8": (1, 8), "nodes": (2, 16), "cpu": (1, 2)}  # machines, processes


def parsed(name: str, *options: str) -> argparse.Namespace:
    """What accelerate launch makes of a file and options."""
    words = ["--config_file", str(FOLDER / f"{name}.yaml"), *options, "train.py"]
    return _validate_launch_command(launch_command_parser().parse_args(words))[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_every_file(path, tmp_path):
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig) and config.num_processes >= 1
    broken = tmp_path / path.name
    broken.write_text(path.read_text() + "\nnum_proceses: 2\n")
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(broken))


@pytest.mark.parametrize("name", OURS)
def test_every_file_says_how_it_is_used_and_leaves_the_precision_to_the_recipe(name):
    path = FOLDER / f"{name}.yaml"
    assert f"#   accelerate launch --config_file tools/accelerate/{name}.yaml " in path.read_text()
    assert yaml.safe_load(path.read_text())["mixed_precision"] == "no"


@pytest.mark.parametrize("name", OURS)
def test_what_is_launched(name, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = parsed(name)
    assert (arguments.num_machines, arguments.num_processes) == OURS[name]
    # one process is started plainly; several by torchrun's launcher, which MULTI_CPU would not take
    assert (
        arguments.multi_gpu == (name != "gpu1")
        and not arguments.use_deepspeed
        and not arguments.cpu
    )
    assert load_config_from_file(str(FOLDER / f"{name}.yaml")).distributed_type == (
        DistributedType.NO if name == "gpu1" else DistributedType.MULTI_GPU
    )
    assert arguments.gpu_ids == ("-1,-1" if name == "cpu" else "all")


def test_the_command_line_goes_before_the_file():
    options = ("--num_machines=4", "--num_processes=32", "--machine_rank=3", "--main_process_ip=n0")
    arguments = parsed("nodes", *options, "--main_process_port=20071")
    assert (arguments.num_machines, arguments.num_processes, arguments.machine_rank) == (4, 32, 3)
    assert (arguments.main_process_ip, arguments.main_process_port, arguments.rdzv_backend) == (
        "n0",
        20071,
        "static",
    )
