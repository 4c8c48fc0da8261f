"""What the sections of a recipe are made of: their base and the types with limits that their fields share."""

from collections.abc import Iterator
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, lt=2**31)]
Epochs = Annotated[float, Field(gt=0, le=1e6)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Pair = Annotated[tuple[float, float], Field(strict=False)]  # strict would refuse YAML's lists


class Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def fields(
    section: type[Section], prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every leaf key of the schema with its pydantic field."""
    for name, field in section.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))  # a section, or `section | None`
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if inner:
            yield from fields(inner[0], (*prefix, name))
        else:
            yield (*prefix, name), field
