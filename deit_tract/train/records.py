"""The files of a run's folder read back, each value of the type that the trainer wrote.

A crashed machine leaves files that are empty, cut off or full of zeros. What cannot be trusted is a
UserError that names the file and the line.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deit_tract.common.errors import UserError
from deit_tract.common.text import brief, plural, short
from deit_tract.recipe.settings.recipe import HEADLINES

METRICS = "metrics.jsonl"
FINGERPRINT = "fingerprint.json"
COMPLETE = "take a copy that is complete"
AGAIN = "run the training command again, which writes it, or remove it"
PERCENT = re.compile("(.*_)?(top1|top5|map07|map_area)")
Seconds = Annotated[float, Field(ge=0)]
Step = Annotated[int, Field(ge=0, lt=2**62)]


class _File(BaseModel):
    """Keys that other versions write are let through."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Summary(_File):
    """summary.json: how a run ended."""

    exit: str
    steps: Step | None = None
    seconds: Seconds | None = None
    final: dict[str, Any] | None = None  # the last evaluation


class Environment(_File):
    """environment.json, as far as it is read back."""

    commit: str | None = None
    packages: dict[str, str | None] = {}


class Progress(_File):
    """progress.json of a checkpoint; `files` has each one's size and SHA-256."""

    model_config = ConfigDict(extra="allow")
    step: Step
    files: dict[
        Annotated[str, Field(pattern=r"^\w+\.(safetensors|pt)$")],
        Annotated[tuple[int, str], Field(strict=False)],
    ]
    clock: dict[str, Seconds] | None = None
    best: dict[str, Any] | None = None
    meter: dict[str, Any] | list[float] | None = None
    replaced: list[str] = []  # errors of images


class _Images(_File):
    images: Step
    labels: str | None = None  # SHA-256 of them


class Fingerprint(_File):
    """fingerprint.json: what data a run was trained on, as `data.guards.fingerprint` made it."""

    classes: list[str]
    train: _Images
    val: _Images


class _View(_File):
    mean: list[float] | None = None
    std: list[float] | None = None


class Export(_File):
    """config.json of an exported folder, as far as it is read by us and not by timm."""

    architecture: str | None = None
    label_names: list[str] | None = None
    model_args: dict[str, Any] = {}
    pretrained_cfg: _View = _View()


class _Position(_File):
    step: Step
    epoch: Seconds


T = TypeVar("T", bound=_File)


def read_summary(folder: Path) -> Summary | None:
    """Read summary.json; None if the run has not ended."""
    return _read_typed(folder / "summary.json", Summary)


def read_environment(folder: Path) -> Environment | None:
    """Read environment.json; None if there is none."""
    return _read_typed(folder / "environment.json", Environment)


def read_fingerprint(folder: Path) -> dict[str, Any] | None:
    """Read fingerprint.json; None in runs of older versions."""
    found = _read_typed(folder / FINGERPRINT, Fingerprint, "remove it to leave the data unchecked")
    return found and found.model_dump(exclude_none=True)


def read_export(folder: Path) -> Export:
    """Read config.json of an exported folder."""
    found = _read_typed(folder / "config.json", Export, "export the model again")
    return found or Export()


def read_progress(folder: Path) -> Progress:
    """Read progress.json of a checkpoint, and compare it with its own checksum if it has one."""
    path = folder / "progress.json"
    content = _read(path)
    if content is None:
        raise UserError(path, "is missing")
    values = _parsed(content, path, 1, "")
    known = values.pop("sha256", None) if isinstance(values, dict) else None
    if known is not None and known != digest(values):
        raise UserError(path, "is changed")
    return _typed(values, Progress, path, content, "")


def digest(values: dict[str, Any]) -> str:
    """Return the SHA-256 of what progress.json has beside it."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# ---- metrics.jsonl -------------------------------------------------------------------------------


def read_metrics(folder: Path, leave_out: Callable[[str], None] | None = None) -> list[dict]:
    """Read the records of metrics.jsonl, in the order of their steps.

    A last line without its end is not a mistake: a killed run was about to write it, or one still
    is. Any other broken line is a UserError. With `leave_out` all of them are reported to it in one
    sentence, and left out.
    """
    path = Path(folder) / METRICS
    *lines, last = (_read(path) or b"").split(b"\n")
    records: list[dict] = []
    errors: list[UserError] = []
    for number, line in enumerate([*lines, last] if last else lines, 1):
        try:
            records.append(_record(line, path, number, records))
        except UserError as error:
            if leave_out is None and number <= len(lines):
                raise
            errors.append(error)
    if errors and leave_out is not None:
        where, what, _ = errors[0].args
        leave_out(f"{where}: {what}; {plural(len(errors), 'broken line')} left out")
    return records


def check_ending(folder: Path, summary: Summary, metrics: list[dict]) -> None:
    """Raise UserError if the metrics of a finished run end before it, or with another result."""
    if summary.exit != "finished":
        return
    path = folder / METRICS
    end = metrics[-1]["step"] if metrics else 0
    if summary.steps is not None and end < summary.steps:
        what = f"ends at step {end:,} of {summary.steps:,}, which the run has finished"
        raise UserError(path, what, COMPLETE)
    for key in {headline.metric for headline in HEADLINES.values()} & set(summary.final or {}):
        told = next((record[key] for record in reversed(metrics) if key in record), None)
        if summary.final[key] != told:
            raise UserError(path, "its last evaluation is not the one in summary.json", COMPLETE)


def check_finished(folder: Path) -> None:
    """Raise UserError if a finished run's metrics.jsonl is broken or not complete."""
    summary = read_summary(folder)
    if summary is not None and summary.exit == "finished":
        check_ending(folder, summary, read_metrics(folder))


def _record(line: bytes, path: Path, number: int, before: list[dict]) -> dict:
    """Check one line: position, numbers, and that its step is not before the last one's."""
    where = f"{path}:{number}"
    instead = "run the training command again, which leaves such lines out, or remove the line"
    record = _parsed(line, path, number, instead)
    try:
        _Position.model_validate(record)
    except ValidationError as error:
        raise UserError(where, _reason(error), instead) from None
    for key, value in record.items():
        if not _is_metric(key, value):
            shown = short(json.dumps(value), 40)
            raise UserError(where, f"'{short(key, 40)}' is {shown}", instead)
    if before and record["step"] < before[-1]["step"]:
        what = f"step {record['step']:,} comes after step {before[-1]['step']:,}"
        raise UserError(where, what, instead)
    return record


def _is_metric(key: str, value: Any) -> bool:
    """Whether a record may have it: a number, text, nothing, or these by name.

    Losses of a logged step are finite and accuracies are percentages, or the run had ended.
    """
    named = key == "loss" or PERCENT.fullmatch(key)
    if isinstance(value, dict):
        return not named and all(_is_metric("", one) for one in value.values())
    if value is None or isinstance(value, str):
        return not named
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, int) and abs(value) >= 2**62:
        return False
    if PERCENT.fullmatch(key):
        return 0 <= value <= 100.001  # a mean over classes is rounded
    return key != "loss" or math.isfinite(value)


# ---- JSON ----------------------------------------------------------------------------------------


def _read(path: Path) -> bytes | None:
    """Return a file's content, None if there is none. Raises UserError if it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(path, "is not a plain file", "move it away")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})") from None


def _read_typed(path: Path, kind: type[T], instead: str = AGAIN) -> T | None:
    content = _read(path)
    if content is None:
        return None
    return _typed(_parsed(content, path, 1, instead), kind, path, content, instead)


def _parsed(content: bytes, path: Path, first: int, instead: str) -> Any:
    """Parse JSON that begins in line `first` of a file; a key may not be there twice."""
    if not content.strip(b"\0 \n"):
        raise UserError(f"{path}:{first}", "is empty, as a crash may leave it", instead)
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        where = f"{path}:{first - 1 + error.lineno}"
        raise UserError(where, f"is not JSON ({error.msg})", instead) from None
    except UnicodeDecodeError as error:
        line = first + content.count(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}", "is not text", instead) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{first}", f"is not JSON ({brief(error)})", instead) from None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _typed(values: Any, kind: type[T], path: Path, content: bytes, instead: str) -> T:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        key = f'"{place[0]}"' if place else ""
        line = 1 + content[: max(content.find(key.encode()), 0)].count(b"\n")
        raise UserError(f"{path}:{line}", _reason(error), instead) from None


def _reason(error: ValidationError) -> str:
    """Return pydantic's first complaint: `'step': field required`."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"'{short(place, 40)}': {message}" if place else "is not a JSON object"
