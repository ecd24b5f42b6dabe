r"""Programs on a short list of digits: problems whose answer can't be guessed, with a dial for difficulty.

A problem is a list followed by operations on it, such as `3142rs=`, applied from left to right: `r` reverses the list,
`t` turns it to the left by one (the first digit becomes the last), `i` adds 1 to every digit (9 becomes 0), and `c`
takes every digit from 9. `3142rc=` is worked as `2413 \boxed{7586}`.
"""

import random

from gvm_ray.config.prompts import ListProgramSourceConfig
from gvm_ray.envs.chains import ChainFamily

DIGITS = "0123456789"


def list_program_family(config: ListProgramSourceConfig) -> ChainFamily:
    """Programs on lists of the configured length; a mistaken step applies another operation, with another result."""

    def mistake(digits: str, operation: str, operand: str, rng: random.Random) -> str:
        right = _apply(digits, operation, operand)
        return rng.choice([wrong for other in config.operators if (wrong := _apply(digits, other, "")) != right])

    return ChainFamily(
        name="list-program",
        operators=config.operators,
        digits=DIGITS,
        start_width=config.length,
        operand_width=0,
        apply=_apply,
        mistake=mistake,
    )


def _apply(digits: str, operation: str, _: str) -> str:
    match operation:
        case "r":
            return digits[::-1]
        case "t":
            return digits[1:] + digits[0]
        case "i":
            return "".join(DIGITS[(int(digit) + 1) % 10] for digit in digits)
        case _:
            return "".join(DIGITS[9 - int(digit)] for digit in digits)
