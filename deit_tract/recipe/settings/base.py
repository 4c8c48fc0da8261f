"""What the sections of a recipe are made of: their base, types with limits, notes on keys."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

# ---- types: each number has both limits, wide enough for whatever a person may mean -------------


Count = Annotated[int, Field(ge=1, le=10**9)]  # of steps, images, checkpoints
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]
Few = Annotated[int, Field(ge=1, le=1000)]  # of what costs time or memory each
Many = Annotated[int, Field(ge=1, le=10**6)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Classes = Annotated[int, Field(ge=1, le=100_000)]

Epochs = Annotated[float, Field(gt=0, le=1e6)]
EpochsOrZero = Annotated[float, Field(ge=0, le=1e6)]
Seconds = Annotated[float, Field(ge=1, le=1e6)]

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Factor = Annotated[float, Field(ge=1e-6, le=1e6)]  # on something, or a ratio
Strength = Annotated[float, Field(ge=0, le=100)]  # 0 is off
LearningRate = Annotated[float, Field(ge=1e-15, le=1e6)]
LearningRateOrZero = Annotated[float, Field(ge=0, le=1e6)]
Deviation = Annotated[float, Field(ge=1e-6, le=100)]  # of weights or pixels
Epsilon = Annotated[float, Field(ge=1e-30, le=1)]


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise PydanticCustomError("ordered", "Input should be [smallest, largest]")
    return pair


Items = Field(strict=False)  # strict would refuse YAML's lists for tuples
T = TypeVar("T")
Range = Annotated[tuple[T, T], Items, AfterValidator(_ordered)]  # [smallest, largest]
Betas = Annotated[tuple[Fraction, Fraction], Items]

# ---- sections and what is known of their keys ----------------------------------------------------


def key(*default_and_description: Any) -> Any:
    """A field: its default (a field without one is required) and its description."""
    *default, description = default_and_description
    return Field(*default, description=description)


class Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Note:
    """What an annotation tells about a key besides its type; a section's holds for its keys."""

    free: bool = False  # may change when a run resumes: it decides neither weights nor accuracies
    task: str | None = None  # the only task that reads it, or "all"; None: as its section


Free = Annotated[T, Note(free=True)]
ForAll = Annotated[T, Note(task="all")]
ForClassify = Annotated[T, Note(task="classify")]
ForDetect = Annotated[T, Note(task="detect")]

EVERY = Note(task="all")

KeyPath = tuple[str, ...]


def fields(section: type[Section], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every leaf key of the schema with its pydantic field."""
    for name, field in section.model_fields.items():
        inner = _section(field.annotation, *get_args(field.annotation))
        if inner is None:
            yield (*prefix, name), field
        else:
            yield from fields(inner, (*prefix, name))


def notes(
    section: type[Section], prefix: KeyPath = (), above: Note = EVERY
) -> Iterator[tuple[KeyPath, Note]]:
    """Every key with its note; an optional section (`section | None`) counts as one key."""
    for name, field in section.model_fields.items():
        own = above
        for note in field.metadata:
            if isinstance(note, Note):
                own = Note(own.free or note.free, note.task or own.task)
        inner = _section(field.annotation)
        if inner is None:
            yield (*prefix, name), own
        else:
            yield from notes(inner, (*prefix, name), own)


def _section(*kinds: Any) -> type[Section] | None:
    """The first of some types that is a section."""
    found = (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section))
    return next(found, None)
