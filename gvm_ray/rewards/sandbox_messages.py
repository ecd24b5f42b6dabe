"""What a reward process tells its parent: JSON in a few closed shapes, one packet each.

The process runs libraries on model text, and some of them evaluate it; so nothing that comes out of it is unpickled,
and a packet that isn't exactly one of these shapes is refused.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

UnscoredReason = Literal["timeout", "memory", "crash", "error"]

MAX_PACKET_BYTES = 2**16
MAX_DETAIL_CHARACTERS = 4000

_CLOSED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def printable(text: str) -> str:
    """The end of `text`, with every character escaped that a terminal might obey or an encoder refuse."""
    kept = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text[-MAX_DETAIL_CHARACTERS:])
    return "".join(kept)[-MAX_DETAIL_CHARACTERS:]


Detail = Annotated[str, Field(max_length=MAX_DETAIL_CHARACTERS), AfterValidator(printable)]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a response is worth."""

    __pydantic_config__ = _CLOSED

    reward: float
    terms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Unscored:
    """Why a response has no reward."""

    __pydantic_config__ = _CLOSED

    reason: UnscoredReason
    detail: Detail = ""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What the environment answers to a turn; the episode goes on."""

    __pydantic_config__ = _CLOSED

    observation: str


Result = Scored | Unscored | Observed


@dataclass(frozen=True, kw_only=True)
class Started:
    """Whether the process could make its environment."""

    __pydantic_config__ = _CLOSED

    failure: Literal["", "user", "system"] = ""  # "user": what the user can mend
    detail: Detail = ""


_RESULT: TypeAdapter[Result] = TypeAdapter(Result)
_STARTED: TypeAdapter[Started] = TypeAdapter(Started)
_MESSAGE: TypeAdapter[Result | Started] = TypeAdapter(Result | Started)


def encode(message: Result | Started) -> bytes:
    """One packet; a result too long for one is an unscored response."""
    packet = _MESSAGE.dump_json(message)
    if len(packet) > MAX_PACKET_BYTES:
        what = "the environment's answer takes" if isinstance(message, Observed) else "its reward terms take"
        return encode(Unscored(reason="error", detail=f"{what} {len(packet)} bytes of JSON"))
    return packet


def decode_result(packet: bytes) -> Result:
    """The result in a packet.

    Raises:
        ValueError: the packet isn't exactly one result.
    """
    return _RESULT.validate_json(packet)


def decode_started(packet: bytes) -> Started:
    """The report in a packet.

    Raises:
        ValueError: the packet isn't exactly one report.
    """
    return _STARTED.validate_json(packet)
