"""Types of recipe values (fractions, counts, names, sizes), and the base class of all sections."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
ADAPTER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")
Quantization = Literal["8bit", "4bit"]
Pooling = Literal["auto", "cls", "mean", "last", "max"]
HeadPooling = Literal["mean", "last", "max", "entity-start"]
"""What a head of ours pools; the architecture's own head has none of these."""
BYTE_UNITS = {
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


def _require_unique_names(labels: list[str]) -> list[str]:
    if len(set(labels)) < len(labels) or not all(labels):
        raise ValueError("should be unique, non-empty names")
    return labels


def _require_adapter_name(name: str) -> str:
    if not ADAPTER_NAME.fullmatch(name):
        raise ValueError("should be 2 to 63 lower-case letters, digits and dashes, and not begin with a dash")
    return name


def parse_byte_size(size: str) -> int:
    """The number of bytes of a size such as `500MB` or `1.5 GiB`.

    Raises:
        ValueError: `size` is not a number and a unit.
    """
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(BYTE_UNITS)})", size)
    if not match:
        raise ValueError(f"should be a number and one of {', '.join(BYTE_UNITS)}, as in 2GiB")
    return int(float(match[1]) * BYTE_UNITS[match[2]])


def _require_byte_size(match: str) -> str:
    try:
        parse_byte_size(match)
    except ValueError as error:
        raise ValueError(f"{error}; null for none") from None
    return match


Labels = Annotated[list[str], Field(min_length=1), AfterValidator(_require_unique_names)]
ClassWeights = Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]]
LabelSmoothing = Annotated[float, Field(ge=0, lt=1)]
AdapterName = Annotated[str, AfterValidator(_require_adapter_name)]
ByteSize = Annotated[str, AfterValidator(_require_byte_size)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
