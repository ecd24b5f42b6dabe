r"""Chains of arithmetic modulo a small number: problems that a tiny model can learn, with a dial for difficulty.

A problem is a chain such as `3+5*2@4=` over digits below the modulus m, worked strictly from left to right. `+`, `-`
and `*` are taken modulo m, and a@b is 3a + b + 4 modulo m. With m = 7, `3+5*2@4=` is worked as `1 2 \boxed{0}`.
"""

import random

from gvm_ray.config.prompts import ArithmeticSourceConfig
from gvm_ray.envs.chains import ChainFamily


def arithmetic_family(config: ArithmeticSourceConfig) -> ChainFamily:
    """The chains of the configured modulus; a mistaken result is uniform over the wrong digits."""
    modulus = config.modulus

    def apply(value: str, operator: str, operand: str) -> str:
        left, right = int(value), int(operand)
        match operator:
            case "+":
                result = left + right
            case "-":
                result = left - right
            case "*":
                result = left * right
            case _:
                result = 3 * left + right + 4
        return str(result % modulus)

    def mistake(value: str, operator: str, operand: str, rng: random.Random) -> str:
        return str((int(apply(value, operator, operand)) + rng.randrange(1, modulus)) % modulus)

    return ChainFamily(
        name=f"arithmetic-{modulus}",
        operators=config.operators,
        digits="0123456789"[:modulus],
        start_width=1,
        operand_width=1,
        apply=apply,
        mistake=mistake,
    )
