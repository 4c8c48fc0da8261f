"""Write a SLURM batch script for a run on N nodes, and submit it.

python tools/submit.py --recipe vit_s_800ep_tract --nodes 1 --time 1-00:00:00 --data-dir IMAGENET
python tools/submit.py --recipe vit_s_800ep_tract --nodes 1 --array 0-2 --data-dir IMAGENET --print
python tools/submit.py --finetune --recipe vit_s_ft224_tract --checkpoint runs/vit_s_800ep_tract --nodes 1

--print only shows the script. The job saves and goes back to the queue before its time limit and when it is
preempted, until the run has finished (docs/cluster.md).
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from shlex import quote

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import yaml

from deit_tract.cli import Parser, script
from deit_tract.common.errors import UserError
from deit_tract.recipe.resolve import Recipe, load_recipe

NODES = ROOT / "tools" / "accelerate" / "nodes.yaml"
# The script below its variables. No value is put into it, so that nothing in it needs quoting.
BODY = ROOT / "tools" / "submit.sh"
# sbatch's own options that are handed through as they are
THROUGH = {
    "time": "time limit (D-HH:MM:SS and sbatch's other forms)", "partition": "", "account": "", "qos": "",
    "reservation": "", "constraint": "", "nodelist": "", "exclude": "", "dependency": "", "mem": "memory of a node",
    "gres": "", "licenses": "", "comment": "", "mail-type": "", "mail-user": "",
}  # fmt: skip


def parser() -> Parser:
    arguments = Parser(description=__doc__)
    add = arguments.add_argument
    add(
        "--recipe",
        metavar="NAME|FILE",
        required=True,
        help="a recipe of recipes/ by name, or a YAML file",
    )
    add("--finetune", action="store_true", help="run finetune.py, with --checkpoint")
    add("--checkpoint", metavar="RUN|FILE|timm:NAME", help="weights to start from")
    add("--data-dir", metavar="DIR", help="where the data set lies on the nodes")
    add("--output", metavar="DIR", type=Path, help="the run's folder (default: runs/RECIPE)")
    add(
        "--set",
        metavar="section.key=value",
        action="append",
        default=[],
        help="override a value; may be repeated",
    )
    add("--nodes", metavar="N", type=_positive, required=True, help="nodes, one launcher on each")
    add(
        "--gpus-per-node",
        metavar="N",
        type=_positive,
        default=8,
        help="GPUs and processes a node (default: 8)",
    )
    add(
        "--cpus-per-task",
        metavar="N",
        type=_positive,
        help="CPUs a node (default: each process and its loaders)",
    )
    add(
        "--array",
        metavar="SEEDS",
        help="a job a seed, as 0-4 or 0,1,2 (0-9%%2: two at a time), in OUTPUT/seedS",
    )
    add(
        "--config-file",
        metavar="FILE",
        type=Path,
        default=NODES,
        help=f"for accelerate (default: {_short(NODES)})",
    )
    add(
        "--grace",
        metavar="SECONDS",
        type=_positive,
        default=180,
        help="SLURM's warning before the time limit (180)",
    )
    add("--print", action="store_true", help="show the script, submit nothing")
    for name, about in THROUGH.items():
        add(f"--{name}", metavar="VALUE", help=f"sbatch's: {about}".rstrip(": "))
    add("--exclusive", action="store_true", help="sbatch's: nodes of one's own")
    return arguments


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


# ---- checks ----------------------------------------------------------------------------------------------------------


def check(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Raises UserError for what would end the job at its start, or never."""
    processes, lanes = arguments.nodes * arguments.gpus_per_node, recipe.batch.lanes
    if processes > lanes:
        what = f"{arguments.nodes} x {arguments.gpus_per_node} = {processes} processes for batch.lanes {lanes}"
        raise UserError(
            "--nodes", what, f"start at most {lanes}; more lanes are another experiment"
        )
    if arguments.finetune != (arguments.checkpoint is not None):
        raise UserError(
            "command line", "--finetune and --checkpoint go together", "give both or neither"
        )
    if recipe.model.pretrained and not arguments.finetune:
        what = f"{recipe.name} starts from given weights"
        raise UserError("recipe", what, "add --finetune --checkpoint RUN|FILE|timm:NAME")
    if arguments.array and any(text.partition("=")[0].strip() == "seed" for text in arguments.set):
        raise UserError("--set seed", "--array sets the seeds", "leave one of them out")
    limit = minutes(arguments.time)
    if limit is not None and limit * 60 <= arguments.grace + 60:  # SLURM may warn a minute early
        what = (
            f"{arguments.time} leaves no time before the warning, {arguments.grace} s ahead of it"
        )
        raise UserError("--time", what, "give a longer time or a shorter --grace")
    _check_config(arguments.config_file, processes, recipe)


def _check_config(path: Path, processes: int, recipe: Recipe) -> None:
    config = _config(path)
    kind, lanes = config["distributed_type"], recipe.batch.lanes
    if (
        kind in ("NO", "MULTI_CPU") and processes > 1
    ):  # with these, accelerate launch starts one process
        raise UserError(path, f"is for one process, not for {processes}", f"take {_short(NODES)}")
    if kind == "DEEPSPEED" and lanes % processes:
        what = f"DeepSpeed cannot share {lanes} lanes evenly among {processes} processes"
        raise UserError(path, what, "start a number of processes that divides batch.lanes")
    stage = (config.get("deepspeed_config") or {}).get("zero_stage", 2)
    if kind == "DEEPSPEED" and recipe.optim.name == "lamb" and stage != 0:
        what = f"LAMB's trust ratio needs whole tensors, which ZeRO stage {stage} cuts up"
        raise UserError(
            path, what, f"take {_short(NODES)}, a file with zero_stage: 0, or AdamW or SGD"
        )


def _config(path: Path) -> dict:
    """A file of Accelerate's."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            path, f"cannot be read ({' '.join(str(error).split())})", "see tools/accelerate/"
        ) from None
    if not isinstance(content, dict) or "distributed_type" not in content:
        raise UserError(
            path,
            "has no distributed_type as configurations of accelerate's have",
            "see tools/accelerate/",
        )
    return content


def seeds(array: str | None) -> list[int]:
    """The seeds of `0-4`, `0,2,5-9`, `0-8:4` or `0-9%2`; none without --array."""
    if array is None:
        return []
    if not re.fullmatch(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%[1-9]\d*)?", array):
        raise UserError("--array", f"'{array}' is no list of seeds", "write it as 0-4 or 0,1,2")
    found: list[int] = []
    for part in array.partition("%")[0].split(","):
        first, last, every = re.fullmatch(r"(\d+)(?:-(\d+))?(?::(\d+))?", part).groups()
        found += range(int(first), int(last or first) + 1, int(every or 1) or 1)
    if not found:
        raise UserError("--array", f"'{array}' holds no seed", "write it as 0-4 or 0,1,2")
    return found


def minutes(time: str | None) -> float | None:
    """A time limit as sbatch reads it; None where there is none, or none that this knows."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time or "")
    if match is None:
        return None
    days, *rest = (None if part is None else int(part) for part in match.groups())
    a, b, c = (part or 0 for part in rest)
    if days is not None or rest[2] is not None:  # D-HH[:MM[:SS]], HH:MM:SS
        return (days or 0) * 1440 + a * 60 + b + c / 60
    return a + b / 60  # MM[:SS]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of at least 1")
    return int(text)


# ---- the script ------------------------------------------------------------------------------------------------------


def batch_script(arguments: argparse.Namespace, recipe: Recipe, folder: Path) -> str:
    """The whole script: sbatch's options, what is run, and what BODY holds."""
    gpus, array = arguments.gpus_per_node, arguments.array
    cpus = arguments.cpus_per_task or gpus * (recipe.data.workers + 1)
    log = f"{folder}/slurm-".replace("%", "%%") + ("%A_%a.out" if array else "%j.out")
    options = {
        "job-name": recipe.name, "chdir": Path.cwd(), "output": log, "open-mode": "append",
        "nodes": arguments.nodes, "ntasks-per-node": 1, "gpus-per-node": gpus, "cpus-per-task": cpus,
        "array": array, **{name: getattr(arguments, name.replace("-", "_")) for name in THROUGH},
        "requeue": True, "exclusive": arguments.exclusive, "signal": f"B:USR1@{arguments.grace}",
    }  # fmt: skip
    if arguments.gres is not None:
        del options["gpus-per-node"]  # gres=gpu:... says it in the way of older clusters
    lines = [
        _directive(name, value) for name, value in options.items() if value not in (None, False)
    ]
    seed = "$SLURM_ARRAY_TASK_ID"
    output = f'{quote(str(folder))}/seed"{seed}"' if array else quote(str(folder))
    # the id of one of the array's jobs may be that of the array, and name all of them
    job = f"${{SLURM_ARRAY_JOB_ID}}_{seed}" if array else "$SLURM_JOB_ID"
    return "\n".join([
        "#!/bin/bash",
        f"# {recipe.name} on {arguments.nodes} x {gpus} GPUs, written by tools/submit.py",
        *lines, "",
        f"job={job}", f"cpus={cpus}", f"output={output}", f"python={quote(sys.executable)}",
        _array("launch", _launch(arguments)),
        _array("run", _run(arguments, array is not None)),
        "",
    ]) + BODY.read_text(encoding="utf-8")  # fmt: skip


def _launch(arguments: argparse.Namespace) -> list[str]:
    """The launcher's arguments that are the same on every node, one line each."""
    processes = arguments.nodes * arguments.gpus_per_node
    lines = [f"--config_file {quote(str(arguments.config_file.absolute()))}"]
    lines += [f"--num_machines {arguments.nodes} --num_processes {processes}"]
    if _config(arguments.config_file)["distributed_type"] == "DEEPSPEED":
        lines += [
            "--deepspeed_multinode_launcher standard"
        ]  # its own default goes round the nodes by ssh once more
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
        raise UserError(
            f"--{name}", f"{text!r} cannot stand in a batch script", "choose a plain name"
        )
    if re.search(r"[^\w@%+=:,./*-]", text):
        text = '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
    return f"#SBATCH --{name}" + ("" if value is True else f"={text}")


def submit(text: str, folder: Path) -> None:
    """Keep the script in the run's folder and give it to sbatch."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch", "not found: this is no machine of a SLURM cluster", "--print shows the script"
        )
    path = folder / "job.sbatch"
    try:
        folder.mkdir(parents=True, exist_ok=True)  # SLURM makes no folder for its output file
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            folder, f"cannot be written ({error.strerror})", "choose another --output"
        ) from None
    answer = subprocess.run(["sbatch", str(path)], capture_output=True, text=True)
    if answer.returncode:
        raise UserError(
            "sbatch",
            " ".join(answer.stderr.split()) or f"exit code {answer.returncode}",
            f"see {path}",
        )
    print(answer.stdout.strip())


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    script(main)
