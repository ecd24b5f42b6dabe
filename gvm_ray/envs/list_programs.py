r"""Programs on a short list of digits: problems whose answer can't be guessed, with a dial for difficulty.

A problem is a list followed by operations on it, such as `3142rs=`, applied from left to right: `r` reverses the list,
`t` turns it to the left by one (the first digit becomes the last), `i` adds 1 to every digit (9 becomes 0), and `s`
sorts it in ascending order. `3142rs=` is worked as `2413 \boxed{1234}`.
"""

import random

from gvm_ray.config.prompts import ListProgramSourceConfig
from gvm_ray.envs.chains import ChainFamily

DIGITS = "0123456789"


def list_program_family(config: ListProgramSourceConfig) -> ChainFamily:
    """Programs on lists of the configured length; a mistaken result has one digit wrong, uniform over the others."""
    return ChainFamily(
        name="list-program",
        operators=config.operators,
        digits=DIGITS,
        start_width=config.length,
        operand_width=0,
        apply=_apply,
        mistake=_mistake,
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
            return "".join(sorted(digits))


def _mistake(digits: str, rng: random.Random) -> str:
    position = rng.randrange(len(digits))
    wrong = DIGITS[(int(digits[position]) + rng.randrange(1, 10)) % 10]
    return digits[:position] + wrong + digits[position + 1 :]
