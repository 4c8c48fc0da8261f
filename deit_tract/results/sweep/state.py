"""How far the runs of a set are, read from their folders and nowhere else."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from deit_tract.common.errors import UserError
from deit_tract.common.text import plural, short, table
from deit_tract.results.sweep.definition import Member, Sweep
from deit_tract.train import checkpoint
from deit_tract.train.folder import is_locked
from deit_tract.train.records import Summary, read_summary

NOTHING: Mapping[Path, float] = {}
LOG = "log.txt"  # what a run in the queue printed, and how it ended
ENDED = "exit code "

KINDS = {
    "finished": "",
    "running": "",
    "saved": "stopped by a signal or killed; resumes from its last checkpoint",
    "waiting": "not started",
    "blocked": "the run that it starts from has not finished",
    "failed": "started again with --retry",
}


class State(NamedTuple):
    kind: str  # one of KINDS
    reason: str = ""  # of a failure
    step: int = 0  # of the newest checkpoint


def read_state(member: Member) -> State:
    """Return the state of one run; one whose files are broken has failed."""
    try:
        return _state(member)
    except UserError as error:
        return State("failed", str(error))


def _state(member: Member) -> State:
    folder = member.folder
    summary = read_summary(folder) or Summary(exit="")
    ended = summary.exit
    step = max(checkpoint.steps(folder / checkpoint.FOLDER), default=0)
    if is_locked(folder):
        return State("running", "", step)
    if ended == "finished":
        return State("finished", "", step)
    if ended.startswith("stopped"):
        return State("failed", ended, step)
    reason = _failure(folder / LOG)
    if reason:
        return State("failed", reason, step)
    if member.source is not None and not _is_finished(member.source):
        return State("blocked", "", step)
    return State("saved" if step else "waiting", "", step)


def _is_finished(folder: Path) -> bool:
    summary = read_summary(folder)
    return summary is not None and summary.exit == "finished"


def _failure(log: Path) -> str:
    """Return why the last start of a run failed by itself; empty if it did not.

    Exit codes 75 (saved after a signal) and below 0 (killed) are not the run's own failure.
    """
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 4000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    lines = [line for line in lines if line.strip()]
    match = re.fullmatch(re.escape(ENDED) + r"(-?\d+)", lines[-1]) if lines else None
    if match is None or int(match[1]) <= 0 or int(match[1]) == 75:
        return ""
    said = [line for line in lines[:-1] if not line.startswith(ENDED)]
    return said[-1].strip() if said else lines[-1]


def status_text(
    sweep: Sweep, states: dict[Path, State], hours: Mapping[Path, float] = NOTHING, gpu: str = ""
) -> str:
    """Return how many runs are in which state per row, failures with reasons, and hours left.

    hours: of the unfinished runs, by folder; empty if they are not known.
    """
    present = [kind for kind in KINDS if any(state.kind == kind for state in states.values())]
    columns = ["", *present, *(["hours left"] if hours else [])]
    rows = []
    parts = list(dict.fromkeys(member.row for member in sweep.members))
    for row in [*parts, None] if len(parts) > 1 else [None]:
        members = [member for member in sweep.members if row in (member.row, None)]
        count = Counter(states[member.folder].kind for member in members)
        name = "all" if row is None else row or "not in the table"
        cells = [name, *(str(count[kind] or "-") for kind in present)]
        if hours:
            cells.append(f"{sum(hours.get(member.folder, 0) for member in members):,.1f}")
        rows.append(cells)
    lines = [table(columns, rows, right=columns[1:])]
    for kind in present:
        if KINDS[kind]:
            lines.append(f"{kind}: {KINDS[kind]}")
    failed = [member for member in sweep.members if states[member.folder].kind == "failed"]
    for member in failed[:10]:
        lines.append(f"failed: {member.folder}: {short(states[member.folder].reason, 200)}")
    if len(failed) > 10:
        lines.append(f"and {plural(len(failed) - 10, 'more failure')}")
    if hours:
        lines.append(f"hours of one {gpu}, by the plan's rule (35 % of its peak); not measured")
    return "\n".join(lines)
