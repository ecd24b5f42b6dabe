"""Why a row doesn't become a prompt."""

from dataclasses import dataclass
from typing import Literal

Reason = Literal["bad_row", "no_answer", "unverified", "duplicate", "near_duplicate", "contaminated", "too_long"]

# In the order in which they are looked at; a row leaves for the first that holds.
REASONS: dict[Reason, str] = {
    "bad_row": "a field is missing, empty or of the wrong type",
    "no_answer": "no final answer in the answer's field",
    "unverified": "Math-Verify can't parse the answer",
    "duplicate": "the same problem to the letter",
    "near_duplicate": "the same problem but for layout, case or dollar signs",
    "contaminated": "an evaluation set has the problem, or a part of it",
    "too_long": "more tokens than --max-tokens",
}


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why one task is taken out."""

    reason: Reason
    detail: str
