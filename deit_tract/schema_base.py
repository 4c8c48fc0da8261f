"""What the sections of a recipe are made of: their base and the types with limits that their fields share."""

from typing import Annotated

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
