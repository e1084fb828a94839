"""Number fields that settings, records, metrics and attack points share."""

from typing import Annotated

from pydantic import Field, FiniteFloat

Natural = Annotated[int, Field(ge=0, lt=2**63)]  # the multiply-accumulates of a large net need more than 32 bits
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Natural
NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Percent = Annotated[FiniteFloat, Field(ge=0, le=100)]
