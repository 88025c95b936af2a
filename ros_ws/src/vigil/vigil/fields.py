"""What the settings that a person edits are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Vector = tuple[Finite, Finite, Finite]


class Strict(BaseModel):
    """Unknown keys are errors: a misspelt limit must not be ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)
