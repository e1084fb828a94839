"""Number fields that records share."""

from typing import Annotated

from pydantic import Field, FiniteFloat

Natural = Annotated[int, Field(ge=0, lt=2**63)]


Positive = Annotated[int, Field(ge=1, lt=2**63)]


Percent = Annotated[FiniteFloat, Field(ge=0)]  # no upper end: float32 means of 100 % exceed it by rounding
