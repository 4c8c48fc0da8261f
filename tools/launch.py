"""Start training on several processes: `accelerate launch` with all its options, said shortly.

python tools/launch.py --config_file tools/accelerate/node8.yaml train.py --recipe NAME

An error stays the line that the training printed, without the launcher's traceback below it, and
the exit code is the training's: 2 for a mistake, 75 after a signal when the run was saved.
"""

import logging
import subprocess
import sys

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

SAID = (2, 75)  # exit codes after which the training has said why


def main() -> int:
    # who failed, and that the others are ended
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    arguments = launch_command_parser().parse_args()
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return exit_code(failure.exitcode, f"process {rank} (pid {failure.pid})")
    except subprocess.CalledProcessError as error:
        return exit_code(error.returncode, "the process")
    return 0


def exit_code(code: int, who: str) -> int:
    """The launcher's exit code; a code that the training did not choose gets a line."""
    if code not in SAID:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        print(f"error: launch: {who} {how}; see above", file=sys.stderr)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
