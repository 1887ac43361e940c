"""What values in a recipe are: shares, counts, names, sizes; and what every section refuses."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
ADAPTER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")
Quantization = Literal["8bit", "4bit"]
BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def _named_once(labels: list[str]) -> list[str]:
    if len(set(labels)) < len(labels) or not all(labels):
        raise ValueError("should be names, each given once")
    return labels


def _adapter_name(name: str) -> str:
    if not ADAPTER_NAME.fullmatch(name):
        raise ValueError("should be 2 to 63 lower-case letters, digits and dashes, and not begin with a dash")
    return name


def parse_byte_size(size: str) -> int:
    """`500MB`, `1.5 GiB` → bytes.

    Raises:
        ValueError: `size` is not a number and a unit.
    """
    written = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(BYTES)})", size)
    if not written:
        raise ValueError(f"should be a number and one of {', '.join(BYTES)}, as in 2GiB")
    return int(float(written[1]) * BYTES[written[2]])


def _size(written: str) -> str:
    try:
        parse_byte_size(written)
    except ValueError as error:
        raise ValueError(f"{error}; null for none") from None
    return written


Labels = Annotated[list[str], Field(min_length=1), AfterValidator(_named_once)]
AdapterName = Annotated[str, AfterValidator(_adapter_name)]
Size = Annotated[str, AfterValidator(_size)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
