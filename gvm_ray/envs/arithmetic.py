r"""A procedural family of chain-of-thought problems that a tiny model can learn, with a dial for difficulty.

A problem is a chain such as `3+5*2@4=` over digits below the modulus m, worked strictly from left to right. `+`, `-`
and `*` are taken modulo m, and a@b is 3a + b + 4 modulo m. A rationale lists the running results and boxes the last:
with m = 7, `3+5*2@4=` is worked as `1 2 \boxed{0}`. Any running result but the last may be left unwritten, as `_`, so a
chain of k operations has 2^(k-1) valid rationales: the latent rationales of a prompt are many, as in real reasoning.

Problems of one family have one width, padded with spaces before the `=`. Then the operand of every step stands at the
same distance from the place where the step's result is written, which is what a model of two layers can learn in a
minute.
"""

import hashlib
import heapq
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from gvm_ray.config.prompts import ArithmeticLevelConfig, ArithmeticSourceConfig
from gvm_ray.envs.task import Task
from gvm_ray.exceptions import DataError

OPERATORS = "+-*@"  # from easy to hard; a level draws from the operators up to its own
UNWRITTEN = "_"  # stands for a running result that is not written down
TEST_SHARE = 5  # one in so many problems is a test problem
ENUMERATED = 20_000  # levels with at most so many problems are listed in full, larger ones are drawn from
MAX_REJECTIONS = 10_000  # draws in a row without a usable problem: the level has none


def arithmetic_tasks(config: ArithmeticSourceConfig) -> list[Task]:
    """`size` distinct problems of the configured split, in random order.

    Levels share `size` by weight; a level with fewer problems than its share gives all it has, and the others make up
    for it.

    Raises:
        DataError: the split has fewer than `size` problems, or two levels are the same.
    """
    _check_distinct(config.levels)
    rng = random.Random(f"arithmetic problems {config.seed}")
    listed = [_listed_problems(level, config=config, rng=rng) for level in config.levels]
    # A tenth is half of what the smaller split holds, so that drawing distinct problems at random stays quick.
    capacities = [
        len(problems) if problems is not None else _num_problems(level, modulus=config.modulus) // 10
        for level, problems in zip(config.levels, listed, strict=True)
    ]
    counts = _shares(config.size, weights=[level.weight for level in config.levels], capacities=capacities)
    tasks: list[Task] = []
    for index, (level, problems, count) in enumerate(zip(config.levels, listed, counts, strict=True)):
        chosen = _drawn_problems(level, config=config, rng=rng, count=count) if problems is None else problems[:count]
        tasks += [_task(problem, index=index, level=level, modulus=config.modulus) for problem in chosen]
    rng.shuffle(tasks)
    return tasks


def demonstrations(
    config: ArithmeticSourceConfig, *, num: int, seed: int, excluded: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """`num` pairs (problem, worked response) from the training split; problems repeat, levels come by weight.

    A step is right with probability `step_accuracy[operator]`; a wrong one is uniform over the wrong digits, and the
    chain goes on from it. Running results are left out with `skip_probability`.

    Args:
        config: Levels, accuracies and modulus; its size, seed and split play no part.
        num: Demonstrations to draw.
        seed: Of the draws.
        excluded: Problems never to show, e.g. those of the evaluation.

    Raises:
        DataError: a level has no problem in the training split.
    """
    rng = random.Random(f"arithmetic demonstrations {seed}")
    for level in rng.choices(config.levels, weights=[level.weight for level in config.levels], k=num):
        for _ in range(MAX_REJECTIONS):
            problem = _random_problem(level, config=config, rng=rng)
            if split_of(problem) == "train" and problem not in excluded:
                break
        else:
            raise DataError(
                f"arithmetic level {_named(level)} modulo {config.modulus} has no problem left for demonstrations; "
                "write a larger num_operations or modulus, or remove the level"
            )
        yield problem, _worked(problem, config=config, rng=rng)


def running_results(problem: str, *, modulus: int) -> list[int]:
    """The result after each operation of a chain such as `3+5*2  =`, each in [0, modulus)."""
    results = []
    value = int(problem[0])
    for operator, operand in _steps(problem):
        value = _apply(operator, value, operand, modulus=modulus)
        results.append(value)
    return results


def is_valid_rationale(rationale: str, *, problem: str, modulus: int) -> bool:
    """True if the text is the right running results in order, any of them unwritten, and the boxed last one."""
    *running, last = running_results(problem, modulus=modulus)
    *written, boxed = rationale.split(" ")
    return (
        boxed == _boxed(last)
        and len(written) == len(running)
        and all(text in (str(result), UNWRITTEN) for text, result in zip(written, running, strict=True))
    )


def num_valid_rationales(problem: str) -> int:
    """How many texts are valid: 2^(k-1) of a chain of k operations."""
    return 2 ** (len(_steps(problem)) - 1)


def split_of(problem: str) -> Literal["train", "test"]:
    """The split that a problem belongs to, by a hash of its chain: the same in every run and configuration."""
    digest = hashlib.blake2b(_chain(problem).encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def _apply(operator: str, left: int, right: int, *, modulus: int) -> int:
    match operator:
        case "+":
            value = left + right
        case "-":
            value = left - right
        case "*":
            value = left * right
        case _:
            value = 3 * left + right + 4
    return value % modulus


def _boxed(result: int) -> str:
    return f"\\boxed{{{result}}}"


def _task(problem: str, *, index: int, level: ArithmeticLevelConfig, modulus: int) -> Task:
    *running, last = running_results(problem, modulus=modulus)
    return Task(
        prompt_id=f"arithmetic-{modulus}-{_chain(problem)}",
        problem=problem,
        answer=str(last),
        features={"level": index, "num_operations": level.num_operations, "operator": level.operator},
        rationale=" ".join([*map(str, running), _boxed(last)]),
    )


def _worked(problem: str, *, config: ArithmeticSourceConfig, rng: random.Random) -> str:
    """A response as an unsure worker writes it."""
    accuracy: Mapping[str, float] = {**config.step_accuracy}
    written = []
    value = int(problem[0])
    for operator, operand in _steps(problem):
        value = _apply(operator, value, operand, modulus=config.modulus)
        if rng.random() >= accuracy.get(operator, 1.0):
            value = (value + rng.randrange(1, config.modulus)) % config.modulus
        written.append(str(value) if rng.random() >= config.skip_probability else UNWRITTEN)
    return " ".join([*written[:-1], _boxed(value)])


def _allowed(level: ArithmeticLevelConfig) -> str:
    return OPERATORS[: OPERATORS.index(level.operator) + 1]


def _num_problems(level: ArithmeticLevelConfig, *, modulus: int) -> int:
    """Problems of a level, both splits together: digits times operator sequences that hold the level's operator."""
    allowed, k = len(_allowed(level)), level.num_operations
    return modulus ** (k + 1) * (allowed**k - (allowed - 1) ** k)


def _problem(digits: Sequence[str], operators: Sequence[str], *, max_operations: int) -> str:
    chain = digits[0] + "".join(o + d for o, d in zip(operators, digits[1:], strict=True))
    return chain.ljust(2 * max_operations + 1) + "="


def _chain(problem: str) -> str:
    """`3+5*2` of `3+5*2    =`."""
    return problem.removesuffix("=").rstrip()


def _steps(problem: str) -> list[tuple[str, int]]:
    """The operations of a chain in order: operator and right operand."""
    chain = _chain(problem)
    return [(chain[position], int(chain[position + 1])) for position in range(1, len(chain), 2)]


def _random_problem(level: ArithmeticLevelConfig, *, config: ArithmeticSourceConfig, rng: random.Random) -> str:
    """Uniform over the level's problems."""
    operators = rng.choices(_allowed(level), k=level.num_operations)
    while level.operator not in operators:
        operators = rng.choices(_allowed(level), k=level.num_operations)
    digits = rng.choices("0123456789"[: config.modulus], k=level.num_operations + 1)
    return _problem(digits, operators, max_operations=config.max_operations)


def _listed_problems(
    level: ArithmeticLevelConfig, *, config: ArithmeticSourceConfig, rng: random.Random
) -> list[str] | None:
    """Every problem of a small level that is in the split, in random order; None for a large level."""
    if _num_problems(level, modulus=config.modulus) > ENUMERATED:
        return None
    problems = [
        problem
        for operators in itertools.product(_allowed(level), repeat=level.num_operations)
        if level.operator in operators
        for digits in itertools.product("0123456789"[: config.modulus], repeat=level.num_operations + 1)
        if split_of(problem := _problem(digits, operators, max_operations=config.max_operations)) == config.split
    ]
    rng.shuffle(problems)
    return problems


def _drawn_problems(
    level: ArithmeticLevelConfig, *, config: ArithmeticSourceConfig, rng: random.Random, count: int
) -> list[str]:
    """`count` distinct problems of a large level that are in the split."""
    problems: dict[str, None] = {}
    while len(problems) < count:
        problem = _random_problem(level, config=config, rng=rng)
        if split_of(problem) == config.split:
            problems[problem] = None
    return list(problems)


def _shares(size: int, *, weights: Sequence[float], capacities: Sequence[int]) -> list[int]:
    """Counts that sum to `size`, as proportional to the weights as the capacities let them (Sainte-Laguë's method)."""
    if size > sum(capacities):
        raise DataError(
            f"arithmetic source asks for size={size} distinct problems, but its levels have {sum(capacities)} to give "
            f"in this split; write size={sum(capacities)}, or levels with more operations or a larger modulus"
        )
    counts = [0] * len(weights)
    queue = [(0.5 / weight, i) for i, weight in enumerate(weights) if capacities[i]]
    heapq.heapify(queue)
    for _ in range(size):
        _, i = heapq.heappop(queue)
        counts[i] += 1
        if counts[i] < capacities[i]:
            heapq.heappush(queue, ((counts[i] + 0.5) / weights[i], i))
    return counts


def _check_distinct(levels: Sequence[ArithmeticLevelConfig]) -> None:
    seen: dict[str, int] = {}
    for index, level in enumerate(levels):
        first = seen.setdefault(_named(level), index)
        if first != index:
            raise DataError(
                f"arithmetic levels {first} and {index} are both {_named(level)}; write one, with the weights added up"
            )


def _named(level: ArithmeticLevelConfig) -> str:
    return f"(num_operations={level.num_operations}, operator={level.operator!r})"
