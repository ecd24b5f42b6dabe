"""Messages of a reward process to its parent: JSON of a few closed types, one packet each.

The process runs libraries on model text, and some of them evaluate it. So nothing that it sends is unpickled, and a
packet that isn't exactly of one of these types is refused.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

UnscoredReason = Literal["timeout", "memory", "crash", "error"]

MAX_PACKET_BYTES = 2**16
MAX_DETAIL_CHARACTERS = 4000

_CLOSED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def printable(text: str) -> str:
    """The end of `text`, with escapes for every character that a terminal might obey or an encoder refuse."""
    kept = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text[-MAX_DETAIL_CHARACTERS:])
    return "".join(kept)[-MAX_DETAIL_CHARACTERS:]


Detail = Annotated[str, Field(max_length=MAX_DETAIL_CHARACTERS), AfterValidator(printable)]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The reward of a response."""

    __pydantic_config__ = _CLOSED

    reward: float
    terms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Unscored:
    """The reason why a response has no reward."""

    __pydantic_config__ = _CLOSED

    reason: UnscoredReason
    detail: Detail = ""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """The environment's answer to a turn; the episode continues."""

    __pydantic_config__ = _CLOSED

    observation: str


Result = Scored | Unscored | Observed


@dataclass(frozen=True, kw_only=True)
class Started:
    """The report of a process that has made its environment, or failed to."""

    __pydantic_config__ = _CLOSED

    failure: Literal["", "user", "system"] = ""  # "user": the user can mend it
    detail: Detail = ""


_RESULT: TypeAdapter[Result] = TypeAdapter(Result)
_STARTED: TypeAdapter[Started] = TypeAdapter(Started)
_MESSAGE: TypeAdapter[Result | Started] = TypeAdapter(Result | Started)


def encode(message: Result | Started) -> bytes:
    """Encode a message as one packet; a result that is too long becomes an unscored response."""
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
