"""Operation chains that a tiny model learns in minutes, with many valid rationales and adjustable difficulty."""

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gvm_ray.config.prompts import ArithmeticSourceConfig, ChainLevelConfig, ChainSourceConfig, ListProgramSourceConfig
from gvm_ray.exceptions import DataError
from gvm_ray.tasks.rows import Task

TEST_SHARE = 5  # every fifth problem, on average, is a test problem


def split_of(content: str) -> Literal["train", "test"]:
    """The split of a problem, from a hash of its content, so it is the same in every run and configuration."""
    return "test" if _digest(content) % TEST_SHARE == 0 else "train"


def half_of(content: str) -> Literal["first", "second"]:
    """The half of its split that a problem belongs to, from the same hash."""
    return "first" if _digest(content) // TEST_SHARE % 2 == 0 else "second"


def is_in(content: str, *, split: Literal["all", "train", "test"], half: Literal["both", "first", "second"]) -> bool:
    """True if a problem with this content belongs to this half of this split."""
    return split in ("all", split_of(content)) and half in ("both", half_of(content))


def shares(size: int, *, weights: Sequence[float], capacities: Sequence[int], source: str) -> list[int]:
    """Counts that sum to `size`, as proportional to the weights as the capacities allow (Sainte-Laguë's method).

    Args:
        size: The total number of problems.
        weights: One per level.
        capacities: The most that each level can give.
        source: The source's type, for the message.

    Raises:
        DataError: the levels together have fewer than `size` problems.
    """
    if size > sum(capacities):
        raise DataError(
            f"{source} source asks for size={size} distinct problems, but its levels have only {sum(capacities)} in "
            f"this split; write size={sum(capacities)}, or levels with more problems"
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


def _digest(content: str) -> int:
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big")


UNWRITTEN = "_"  # stands for a character of a running result that is left out
ENUMERATED = 20_000  # levels with at most this many problems are enumerated; larger ones are sampled
MAX_REJECTIONS = 10_000  # after this many draws in a row without a usable problem, the level has none


@dataclass(frozen=True, kw_only=True)
class ChainFamily:
    """One family of operation chains."""

    name: str  # with its parameters; prompt ids begin with it
    operators: str  # one character each, from easy to hard: a level draws from the operators up to its own
    digits: str  # the characters of starts and operands
    start_width: int  # digits of the start, and of every result
    operand_width: int  # digits of an operand
    apply: Callable[[str, str, str], str]  # (value, operator, operand) -> result
    mistake: Callable[[str, str, str, random.Random], str]  # the same, but with a plausible wrong result

    def running_results(self, problem: str) -> list[str]:
        """The result after each operation of the problem."""
        value, steps = self._parts(problem)
        return list(itertools.accumulate(steps, lambda v, step: self.apply(v, *step), initial=value))[1:]

    def tasks(self, config: ChainSourceConfig) -> list[Task]:
        """`size` distinct problems of the configured split, in random order.

        Levels share `size` by weight. A level with fewer problems than its share gives all it has, and the others make
        up the difference.

        Raises:
            DataError: the split has fewer than `size` problems, or two levels are the same.
        """
        _check_distinct(config)
        rng = random.Random(f"{config.type} problems {config.seed}")
        listed = [self._listed_problems(level, config=config, rng=rng) for level in config.levels]
        # Draw at most half of the smallest part of a split, so that finding distinct problems at random stays quick.
        drawable = 2 * TEST_SHARE if config.half == "both" else 4 * TEST_SHARE
        capacities = [
            len(problems) if problems is not None else self._num_problems(level) // drawable
            for level, problems in zip(config.levels, listed, strict=True)
        ]
        weights = [level.weight for level in config.levels]
        counts = shares(config.size, weights=weights, capacities=capacities, source=config.type)
        tasks: list[Task] = []
        for index, (level, problems, count) in enumerate(zip(config.levels, listed, counts, strict=True)):
            chosen = self._drawn_problems(level, config, rng=rng, count=count) if problems is None else problems[:count]
            tasks += [self._task(problem, index=index, level=level) for problem in chosen]
        rng.shuffle(tasks)
        return tasks

    def demonstrations(
        self, config: ChainSourceConfig, *, num: int, seed: int, excluded: frozenset[str] = frozenset()
    ) -> Iterator[tuple[str, str]]:
        """Draw `num` pairs (problem, worked response) from the training split, levels by weight; problems may repeat.

        A step is right with probability `step_accuracy[operator]`; otherwise it has the family's kind of mistake, and
        the chain continues from the wrong result. Running results are left out with probability `skip_probability`.

        Args:
            config: Levels and accuracies; its size, seed, split and half are ignored.
            num: The number of demonstrations.
            seed: Of the draws.
            excluded: Problems never to show, e.g. those of the evaluation.

        Raises:
            DataError: a level has no problem in the training split.
        """
        rng = random.Random(f"{config.type} demonstrations {seed}")
        level_weights = [level.share_of_demonstrations for level in config.levels]
        for level in rng.choices(config.levels, weights=level_weights, k=num):
            for _ in range(MAX_REJECTIONS):
                problem = self._random_problem(level, config=config, rng=rng)
                if split_of(_chain(problem)) == "train" and problem not in excluded:
                    break
            else:
                raise DataError(
                    f"{self.name} level {_named(level)} has no problem left for demonstrations; "
                    "write a larger num_operations, or remove the level"
                )
            yield problem, self._worked(problem, config=config, rng=rng)

    def _task(self, problem: str, *, index: int, level: ChainLevelConfig) -> Task:
        *running, last = self.running_results(problem)
        return Task(
            prompt_id=f"{self.name}-{_chain(problem)}",
            problem=problem,
            answer=last,
            features={"level": index, "num_operations": level.num_operations, "operator": level.operator},
            rationale=" ".join([*running, _boxed(last)]),
        )

    def _worked(self, problem: str, *, config: ChainSourceConfig, rng: random.Random) -> str:
        """A response as in a demonstration, perhaps with mistakes and without some running results."""
        accuracy: Mapping[str, float] = {**config.step_accuracy}
        written = []
        value, steps = self._parts(problem)
        for operator, operand in steps:
            if rng.random() < accuracy.get(operator, 1.0):
                value = self.apply(value, operator, operand)
            else:
                value = self.mistake(value, operator, operand, rng)
            written.append(value if rng.random() >= config.skip_probability else _unwritten(value))
        return " ".join([*written[:-1], _boxed(value)])

    def _parts(self, problem: str) -> tuple[str, list[tuple[str, str]]]:
        """The start of a problem, and its steps in order: operator and operand."""
        chain, width = _chain(problem), 1 + self.operand_width
        starts = range(self.start_width, len(chain), width)
        return chain[: self.start_width], [(chain[i], chain[i + 1 : i + width]) for i in starts]

    def _allowed(self, level: ChainLevelConfig) -> str:
        return self.operators[: self.operators.index(level.operator) + 1]

    def _num_digits(self, level: ChainLevelConfig) -> int:
        return self.start_width + level.num_operations * self.operand_width

    def _num_problems(self, level: ChainLevelConfig) -> int:
        """The number of a level's problems in all splits: digits times operator sequences with the level's operator."""
        allowed, k = len(self._allowed(level)), level.num_operations
        return len(self.digits) ** self._num_digits(level) * (allowed**k - (allowed - 1) ** k)

    def _problem(self, digits: Sequence[str], operators: Sequence[str], *, max_operations: int) -> str:
        text, width = "".join(digits), self.operand_width
        ends = itertools.count(self.start_width, width)
        steps = [operator + text[end : end + width] for operator, end in zip(operators, ends, strict=False)]
        chain = text[: self.start_width] + "".join(steps)
        return chain.ljust(self.start_width + max_operations * (1 + width)) + "="

    def _random_problem(self, level: ChainLevelConfig, *, config: ChainSourceConfig, rng: random.Random) -> str:
        """A problem drawn uniformly from the level."""
        operators = rng.choices(self._allowed(level), k=level.num_operations)
        while level.operator not in operators:
            operators = rng.choices(self._allowed(level), k=level.num_operations)
        digits = rng.choices(self.digits, k=self._num_digits(level))
        return self._problem(digits, operators, max_operations=config.max_operations)

    def _listed_problems(
        self, level: ChainLevelConfig, *, config: ChainSourceConfig, rng: random.Random
    ) -> list[str] | None:
        """All problems of a small level in the split, in random order; None for a large level."""
        if self._num_problems(level) > ENUMERATED:
            return None
        problems = [
            self._problem(digits, operators, max_operations=config.max_operations)
            for operators in itertools.product(self._allowed(level), repeat=level.num_operations)
            if level.operator in operators
            for digits in itertools.product(self.digits, repeat=self._num_digits(level))
        ]
        problems = [problem for problem in problems if _is_wanted(problem, config)]
        rng.shuffle(problems)
        return problems

    def _drawn_problems(
        self, level: ChainLevelConfig, config: ChainSourceConfig, *, rng: random.Random, count: int
    ) -> list[str]:
        """Draw `count` distinct problems of a large level in the split."""
        problems: dict[str, None] = {}
        while len(problems) < count:
            problem = self._random_problem(level, config=config, rng=rng)
            if _is_wanted(problem, config):
                problems[problem] = None
        return list(problems)


def _chain(problem: str) -> str:
    """The chain of a problem: `3+5*2` for `3+5*2    =`."""
    return problem.removesuffix("=").rstrip()


def _is_wanted(problem: str, config: ChainSourceConfig) -> bool:
    return is_in(_chain(problem), split=config.split, half=config.half)


def _boxed(result: str) -> str:
    return f"\\boxed{{{result}}}"


def _unwritten(result: str) -> str:
    return UNWRITTEN * len(result)


def _check_distinct(config: ChainSourceConfig) -> None:
    seen: dict[str, int] = {}
    for index, level in enumerate(config.levels):
        first = seen.setdefault(_named(level), index)
        if first != index:
            raise DataError(
                f"{config.type} levels {first} and {index} are both {_named(level)}; write one level with the sum of "
                "their weights"
            )


def _named(level: ChainLevelConfig) -> str:
    return f"(num_operations={level.num_operations}, operator={level.operator!r})"


def arithmetic_family(config: ArithmeticSourceConfig) -> ChainFamily:
    """Chains with the configured modulus; a mistake gives a result drawn uniformly from the wrong digits."""
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


DIGITS = "0123456789"


def list_program_family(config: ListProgramSourceConfig) -> ChainFamily:
    """Programs on lists of the configured length; a mistake applies another operation that gives another result."""

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
