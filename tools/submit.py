"""Write a SLURM batch script for a run on N nodes, and submit it.

R=vit_s_800ep_tract
python tools/submit.py --recipe $R --nodes 1 --time 1-00:00:00 --data-dir IMAGENET
python tools/submit.py --recipe $R --nodes 1 --array 0-2 --data-dir IMAGENET --print
python tools/submit.py --finetune --recipe vit_s_ft224_tract --checkpoint runs/$R --nodes 1

--print only shows the script. The job saves and goes back to the queue before its time limit and
when it is preempted, until the run has finished (docs/cluster.md).
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import yaml

from deit_tract.cli import Parser, script
from deit_tract.common.errors import UserError
from deit_tract.common.text import short
from deit_tract.recipe.launch import check_launch, read_launch
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.results.arguments import add_shared, given, path, whole

NODES = ROOT / "tools" / "accelerate" / "nodes.yaml"
# The script below its variables. No value is put into it, so that nothing in it needs quoting.
BODY = ROOT / "tools" / "submit.sh"
PART = r"[0-9]{1,19}(-[0-9]{1,19}(:0*[1-9][0-9]{0,9})?)?"  # of --array
LAST_SEED = 4_000_000  # the largest index that SLURM knows
MOST_SEEDS = 10_000
# Keys of an Accelerate config's deepspeed_config and the variables that they become
DEEPSPEED = {
    "zero_stage": "ZERO_STAGE",
    "deepspeed_config_file": "CONFIG_FILE",
    "offload_optimizer_device": "OFFLOAD_OPTIMIZER_DEVICE",
    "offload_param_device": "OFFLOAD_PARAM_DEVICE",
}
# sbatch's own options that are handed through as they are
THROUGH = {
    "time": "time limit (D-HH:MM:SS and sbatch's other forms)", "mem": "memory per node",
    "partition": "", "account": "", "qos": "", "reservation": "", "constraint": "", "nodelist": "",
    "exclude": "", "dependency": "", "gres": "", "licenses": "", "comment": "", "mail-type": "",
    "mail-user": "",
}  # fmt: skip


def parser() -> Parser:
    arguments = Parser(description=__doc__)
    add = arguments.add_argument
    recipe = "a recipe of recipes/ by name, or a YAML file"
    add_shared(arguments, "--recipe", required=True, help=recipe)
    add("--finetune", action="store_true", help="run finetune.py, with --checkpoint")
    weights = {"metavar": "RUN|FILE|timm:NAME", "type": given("--checkpoint")}
    add("--checkpoint", **weights, help="weights to start from")
    add_shared(arguments, "--data-dir", help="the data set's folder on the nodes")
    output = "the run's folder (default: runs/RECIPE)"
    add("--output", metavar="DIR", type=path("--output"), help=output)
    override = {"metavar": "section.key=value", "action": "append", "default": []}
    add("--set", **override, help="override a value; may be repeated")

    array = "one job per seed, as 0-4 or 0,1,2 (0-9%%2: two at a time), in OUTPUT/seedS"
    add("--array", metavar="SEEDS", help=array)
    add_cluster_options(arguments, gpus=8, required=True)
    return arguments


def add_cluster_options(arguments: Parser, gpus: int, **nodes) -> None:
    """Add what a batch job needs besides its run; `gpus` per node if nothing is given."""
    add = arguments.add_argument

    def number(option: str, high: int, help: str, **how) -> None:
        add(option, metavar="N", type=whole(option, 1, high), help=help, **how)

    number("--nodes", 2**16, "nodes, one launcher on each", **nodes)
    per_node = f"GPUs and processes per node (default: {gpus})"
    number("--gpus-per-node", 128, per_node, default=gpus)
    cpus = "CPUs per node (default: each process and its loaders)"
    number("--cpus-per-task", 2**16, cpus)
    config = f"for accelerate (default: {_short(NODES)})"
    add("--config-file", metavar="FILE", type=path("--config-file"), default=NODES, help=config)
    warning = "seconds from SLURM's warning to the time limit (180)"
    number("--grace", 65535, warning, default=180)  # sbatch's own limit
    add("--print", action="store_true", help="show the script, submit nothing")
    for name, about in THROUGH.items():
        add(f"--{name}", metavar="VALUE", help=f"sbatch's: {about}".rstrip(": "))
    add("--exclusive", action="store_true", help="sbatch's: share no node with other jobs")


def main() -> None:
    arguments = parser().parse_args()
    overrides = [*arguments.set, *(f"seed={seed}" for seed in seeds(arguments.array)[:1])]
    recipe = load_recipe(arguments.recipe, overrides, arguments.data_dir)
    check(arguments, recipe)
    folder = arguments.output or Path("runs") / recipe.name
    text = batch_script(arguments, recipe, folder)
    if arguments.print:
        print(text, end="")
    else:
        submit(text, folder)


# ---- checks --------------------------------------------------------------------------------------


def check(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Raise UserError for what would end the job at its start, or never."""
    if arguments.finetune != (arguments.checkpoint is not None):
        what = "--finetune and --checkpoint go together"
        raise UserError("command line", what, "give both or neither")
    if recipe.model.pretrained and not arguments.finetune:
        what = f"{recipe.name} starts from given weights"
        raise UserError("recipe", what, "add --finetune --checkpoint RUN|FILE|timm:NAME")
    if arguments.array and any(text.partition("=")[0].strip() == "seed" for text in arguments.set):
        raise UserError("--set seed", "--array sets the seeds", "leave one of them out")
    check_job(arguments, recipe)


def check_job(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Raise UserError if the job would end before its warning, or its launch cannot train."""
    time, grace = arguments.time, arguments.grace
    limit = minutes(time)
    if limit is not None and limit * 60 <= grace + 60:  # SLURM may warn a minute early
        what = f"{time} leaves no time before the warning, {grace} s ahead of it"
        raise UserError("--time", what, "give a longer time or a shorter --grace")
    path = arguments.config_file
    config = _config(path)
    processes = arguments.nodes * arguments.gpus_per_node
    # with these, accelerate launch starts one process
    if config["distributed_type"] in ("NO", "MULTI_CPU") and processes > 1:
        raise UserError(path, f"is for one process, not for {processes}", f"use {_short(NODES)}")
    check_launch(recipe, read_launch({**variables(config), "WORLD_SIZE": str(processes)}))


def variables(config: dict) -> dict[str, str]:
    """The environment variables that `accelerate launch` makes of a configuration."""
    found = {f"ACCELERATE_USE_{config['distributed_type']}": "true"}
    deepspeed = config.get("deepspeed_config") or {}
    for key, name in DEEPSPEED.items():
        if key in deepspeed:
            found[f"ACCELERATE_DEEPSPEED_{name}"] = str(deepspeed[key])
    return found


def _config(path: Path) -> dict:
    """Read a configuration file of Accelerate."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        what = f"cannot be read ({' '.join(str(error).split())})"
        raise UserError(path, what, "see tools/accelerate/") from None
    if not isinstance(content, dict) or "distributed_type" not in content:
        what = "is not an Accelerate config: no distributed_type"
        raise UserError(path, what, "see tools/accelerate/")
    return content


def seeds(array: str | None) -> list[int]:
    """The seeds of `0-4`, `0,2,5-9`, `0-8:4` or `0-9%2`; none without --array."""
    if array is None:
        return []
    if not re.fullmatch(rf"{PART}(,{PART})*(%[1-9][0-9]{{0,9}})?", array):
        what = f"'{short(array, 40)}' is not a list of seeds"
        raise UserError("--array", what, "write it as 0-4 or 0,1,2")
    found: list[int] = []
    for part in array.partition("%")[0].split(","):
        first, last, every = re.fullmatch(r"(\d+)(?:-(\d+))?(?::(\d+))?", part).groups()
        seeds = range(int(first), int(last or first) + 1, int(every or 1))
        if not seeds:
            what = f"'{part}' has no seed"
            raise UserError("--array", what, "write it as 0-4 or 0,1,2")
        if seeds[-1] > LAST_SEED or len(found) + len(seeds) > MOST_SEEDS:
            most = f"at most {MOST_SEEDS:,} seeds, none above {LAST_SEED:,}"
            raise UserError("--array", f"'{short(array, 40)}' is too much", f"give {most}")
        found += seeds
    if len(set(found)) < len(found):
        raise UserError("--array", f"'{short(array, 40)}' has a seed twice", "leave one out")
    return found


def minutes(time: str | None) -> float | None:
    """A time limit as sbatch reads it; None if there is none, or none that this knows."""
    match = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", time or "")
    if match is None:
        return None
    days, *rest = (None if part is None else int(part) for part in match.groups())
    a, b, c = (part or 0 for part in rest)
    if days is not None or rest[2] is not None:  # D-HH[:MM[:SS]], HH:MM:SS
        return (days or 0) * 1440 + a * 60 + b + c / 60
    return a + b / 60  # MM[:SS]


# ---- the script ----------------------------------------------------------------------------------


def batch_script(arguments: argparse.Namespace, recipe: Recipe, folder: Path) -> str:
    """The complete script of one run, or of one run per seed."""
    cpus = arguments.cpus_per_task or arguments.gpus_per_node * (recipe.data.workers + 1)
    seed = '/seed"$SLURM_ARRAY_TASK_ID"' if arguments.array is not None else ""
    run = _run(arguments, arguments.array is not None)
    what = [f"output={quote(str(folder))}{seed}", _array("run", run)]
    return script_text(arguments, recipe.name, folder, cpus, what)


def script_text(
    arguments: argparse.Namespace, name: str, folder: Path, cpus: int, what: list[str]
) -> str:
    """A script: sbatch's options, the launch, `what` (which sets `output` and `run`), and BODY."""
    # one of an array's jobs has the array's own id, which would name all of them
    of_array = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    gpus = arguments.gpus_per_node
    lines = [
        "#!/bin/bash",
        f"# {name} on {arguments.nodes} x {gpus} GPUs, written by deit_tract",
        *_directives(arguments, name, folder, cpus),
        "",
        f"job={of_array if arguments.array is not None else '$SLURM_JOB_ID'}",
        f"cpus={cpus}",
        f"python={quote(sys.executable)}",
        _array("launch", _launch(arguments)),
        *what,
        "",
    ]
    return "\n".join(lines) + BODY.read_text(encoding="utf-8")


def _directives(arguments: argparse.Namespace, name: str, folder: Path, cpus: int) -> Iterator[str]:
    """The #SBATCH lines of the options that are set."""
    log = f"{folder}/slurm-".replace("%", "%%") + ("%A_%a.out" if arguments.array else "%j.out")
    # gres=gpu:... asks for GPUs in the way of older clusters
    gpus = arguments.gpus_per_node if arguments.gres is None else None
    options = {
        "job-name": name,
        "chdir": Path.cwd(),
        "output": log,
        "open-mode": "append",
        "nodes": arguments.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus,
        "cpus-per-task": cpus,
        "array": arguments.array,
        **{option: getattr(arguments, option.replace("-", "_")) for option in THROUGH},
        "requeue": True,
        "exclusive": arguments.exclusive,
        "signal": f"B:USR1@{arguments.grace}",
    }
    for option, value in options.items():
        if value not in (None, False):
            yield _directive(option, value)


def _launch(arguments: argparse.Namespace) -> list[str]:
    """The launcher's arguments that are the same on every node, one line each."""
    processes = arguments.nodes * arguments.gpus_per_node
    lines = [f"--config_file {quote(str(arguments.config_file.absolute()))}"]
    lines += [f"--num_machines {arguments.nodes} --num_processes {processes}"]
    if _config(arguments.config_file)["distributed_type"] == "DEEPSPEED":
        # its default would visit the nodes by ssh once more
        lines += ["--deepspeed_multinode_launcher standard"]
    return lines


def _run(arguments: argparse.Namespace, array: bool) -> list[str]:
    """The training script and its arguments, one line each."""
    lines = [quote(str(ROOT / ("finetune.py" if arguments.finetune else "train.py")))]
    lines += [f"--recipe {quote(arguments.recipe)}"]
    if arguments.finetune:
        lines += [f"--checkpoint {quote(arguments.checkpoint)}"]
    if arguments.data_dir is not None:
        lines += [f"--data-dir {quote(arguments.data_dir)}"]
    lines += ['--output "$output"', *(f"--set {quote(text)}" for text in arguments.set)]
    return lines + (['--set seed="$SLURM_ARRAY_TASK_ID"'] if array else [])


def _array(name: str, lines: list[str]) -> str:
    return "\n    ".join([f"{name}=(", *lines]) + "\n)"


def _directive(name: str, value: object) -> str:
    """A #SBATCH line. sbatch reads its values as a shell does, but expands nothing."""
    text = str(value)
    if not text.isprintable():
        what = f"{text!r} cannot be part of a batch script"
        raise UserError(f"--{name}", what, "choose a plain name")
    if re.search(r"[^\w@%+=:,./*-]", text):
        text = '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
    return f"#SBATCH --{name}" + ("" if value is True else f"={text}")


def submit(text: str, folder: Path, name: str = "job.sbatch") -> None:
    """Keep the script in the run's folder and give it to sbatch."""
    if shutil.which("sbatch") is None:
        what = "not found: this machine is not part of a SLURM cluster"
        raise UserError("sbatch", what, "--print shows the script")
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)  # SLURM makes no folder for its output file
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise UserError(folder, what, "choose another --output") from None
    answer = subprocess.run(["sbatch", str(path)], capture_output=True, text=True)
    if answer.returncode:
        what = " ".join(answer.stderr.split()) or f"exit code {answer.returncode}"
        raise UserError("sbatch", what, f"see {path}")
    print(answer.stdout.strip())


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    script(main)
