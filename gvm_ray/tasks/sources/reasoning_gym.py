"""Tasks of the reasoning-gym library, with the entries that its scorers need."""

import difflib
import itertools
import random
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from gvm_ray.config.prompts import ReasoningGymLevelConfig, ReasoningGymSourceConfig
from gvm_ray.exceptions import DataError
from gvm_ray.tasks.rows import Task, content_id
from gvm_ray.tasks.sources.chains import is_in, shares

MAX_REJECTIONS = 1000  # after this many entries in a row without a usable problem, the level has no more
NONSENSE = ("xyzzy", "I don't know", "<<<")
FORM_CREDIT = 0.1  # several scorers give a few hundredths to any text
PROBED_ENTRIES = 3
LEVEL_SEEDS = 1_000_003  # distance between the seeds of consecutive levels


def reasoning_gym_tasks(config: ReasoningGymSourceConfig) -> list[Task]:
    """`size` distinct tasks of the configured split, the same for the same seed and parameters.

    Levels share `size` by weight. A level with fewer problems than its share gives all it has, and the others make up
    the difference. Tasks of several levels are in random order, tasks of a single level in the library's.

    `features["reasoning_gym"]` holds the task's name and its entry (question, answer, metadata) with the library's own
    values, because some scorers tell a tuple from a list.

    Raises:
        DataError: the task is unknown or refuses its parameters, a format has a name that its entries lack, or the
            levels have fewer than `size` problems in the split.
    """
    _check(config)
    levels, taken = _levels(config), set[str]()
    drawn = [
        _Distinct(_level_tasks(config, index, seed=config.seed), config, taken=taken) for index in range(len(levels))
    ]
    weights, capacities = [level.weight for level in levels], [config.size] * len(levels)
    while True:
        counts = shares(config.size, weights=weights, capacities=capacities, source=config.type)
        given = [level.first(count) for level, count in zip(drawn, counts, strict=True)]
        if sum(map(len, given)) == config.size:
            break
        capacities = [
            len(tasks) if len(tasks) < count else capacity
            for tasks, count, capacity in zip(given, counts, capacities, strict=True)
        ]
    tasks = list(itertools.chain.from_iterable(given))
    if len(given) > 1:
        random.Random(f"reasoning-gym order {config.seed}").shuffle(tasks)
    return tasks


def reasoning_gym_demonstrations(
    config: ReasoningGymSourceConfig, *, num: int, seed: int, excluded: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """Draw `num` pairs (problem, response by `rationale_format`), levels by weight; problems may repeat.

    With probability 1 - `demonstration_accuracy` of its level, a response belongs to the level's previous problem.

    Args:
        config: Task, levels, formats and split; its size, seed and half are ignored.
        num: The number of demonstrations.
        seed: Of the draws.
        excluded: Problems never to show, e.g. those of the evaluation.

    Raises:
        DataError: as for the tasks; or a level has no problem left, or there is no `rationale_format`.
    """
    _check(config)
    if config.rationale_format is None:
        raise DataError(
            f"reasoning-gym task {config.task!r} has no demonstrations without rationale_format; write e.g. "
            "rationale_format = '{answer}'"
        )
    rng, levels = random.Random(f"reasoning-gym demonstrations {seed}"), _levels(config)
    first_seed = rng.randrange(2**31)
    shown = [_level_tasks(config, index, seed=first_seed) for index in range(len(levels))]
    latest: dict[int, str] = {}
    level_weights = [level.share_of_demonstrations for level in levels]
    for index in rng.choices(range(len(levels)), weights=level_weights, k=num):
        for task in itertools.islice(shown[index], MAX_REJECTIONS):
            if is_in(task.problem, split=config.split, half="both") and task.problem not in excluded:
                break
        else:
            raise DataError(
                f"level {index} of reasoning-gym task {config.task!r} has no problem left for demonstrations; write "
                "parameters with more problems, or remove the level"
            )
        assert task.rationale is not None
        is_right = rng.random() < levels[index].demonstration_accuracy
        yield task.problem, task.rationale if is_right else latest.get(index, task.rationale)
        latest[index] = task.rationale


def generous_tasks(entries: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of the tasks whose scorers reward nonsense with more than `FORM_CREDIT`, on each of a few entries."""
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        probed = by_task.setdefault(entry["task"], [])
        if len(probed) < PROBED_ENTRIES:
            probed.append(entry)
    return tuple(sorted(task for task, probed in by_task.items() if _pays_for_any_text(task, probed)))


def _pays_for_any_text(task: str, entries: Sequence[Mapping[str, Any]]) -> bool:
    import reasoning_gym

    score: Callable[..., float] = reasoning_gym.get_score_answer_fn(task)
    try:
        return all(float(score(text, entry)) > FORM_CREDIT for entry in entries for text in NONSENSE)
    except Exception:  # a scorer that raises on nonsense doesn't reward it; the reward counts such answers
        return False


class _Distinct:
    """The tasks of one level in the split whose problems aren't taken yet, drawn on demand."""

    def __init__(self, tasks: Iterator[Task], config: ReasoningGymSourceConfig, *, taken: set[str]) -> None:
        self._tasks, self._config = tasks, config
        self._taken = taken  # problems of all levels
        self._drawn: list[Task] = []

    def first(self, count: int) -> list[Task]:
        """The first `count` tasks, or all if there are fewer."""
        while len(self._drawn) < count:
            for task in itertools.islice(self._tasks, MAX_REJECTIONS):
                wanted = is_in(task.problem, split=self._config.split, half=self._config.half)
                if wanted and task.problem not in self._taken:
                    self._taken.add(task.problem)
                    self._drawn.append(task)
                    break
            else:
                break
        return self._drawn[:count]


class _EntryFormatter(string.Formatter):
    """`str.format` with lists joined by spaces, and a conversion `!c` that removes all whitespace."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if isinstance(value, list | tuple):
            value = " ".join(map(str, value))
        return "".join(str(value).split()) if conversion == "c" else super().convert_field(value, conversion)


def _check(config: ReasoningGymSourceConfig) -> None:
    from reasoning_gym.factory import DATASETS

    if config.task not in DATASETS:
        near = difflib.get_close_matches(config.task, list(DATASETS), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(DATASETS))}"
        raise DataError(f"reasoning-gym has no task {config.task!r}; {hint}")
    for level in _levels(config):
        if reserved := {"size", "seed"} & level.parameters.keys():
            raise DataError(
                f"parameters of reasoning-gym task {config.task!r} contain {sorted(reserved)}; "
                "write them beside parameters"
            )


def _levels(config: ReasoningGymSourceConfig) -> list[ReasoningGymLevelConfig]:
    """The levels, each with the source's parameters and its own on top; a source without levels is one level."""
    return [
        level.model_copy(update={"parameters": {**config.parameters, **level.parameters}})
        for level in config.levels or (ReasoningGymLevelConfig(),)
    ]


def _level_tasks(config: ReasoningGymSourceConfig, index: int, *, seed: int) -> Iterator[Task]:
    """Yield a level's tasks without end. An entry depends on the sum of its data set's seed and its own index."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    parameters = _levels(config)[index].parameters
    try:
        for first in itertools.count(seed + index * LEVEL_SEEDS, config.size):
            entries = reasoning_gym.create_dataset(config.task, size=config.size, seed=first % 2**32, **parameters)
            yield from (_task(entry, config=config, level=index) for entry in entries)
    except (TypeError, ValueError, AssertionError) as error:
        known = [field.name for field in fields(DATASETS[config.task][1]) if field.name not in ("size", "seed")]
        raise DataError(
            f"reasoning-gym task {config.task!r} refuses parameters {parameters}: {error}; it knows {', '.join(known)}"
        ) from error


def _task(entry: dict, *, config: ReasoningGymSourceConfig, level: int) -> Task:
    question, answer = entry["question"], entry["answer"] or ""  # no single answer: only the scorer knows
    scored = {"task": config.task, "question": question, "answer": entry["answer"], "metadata": entry["metadata"]}
    problem = question if config.prompt_format is None else _formatted("prompt_format", entry, config=config)
    return Task(
        prompt_id=content_id(problem, answer),
        problem=problem,
        answer=answer,
        features={"reasoning_gym": scored, "level": level},
        rationale=None if config.rationale_format is None else _formatted("rationale_format", entry, config=config),
    )


def _formatted(setting: str, entry: dict, *, config: ReasoningGymSourceConfig) -> str:
    """The setting's format filled in with the entry's question, answer and metadata."""
    template: str = getattr(config, setting)
    names = {"question": entry["question"], "answer": entry["answer"], **entry["metadata"]}
    try:
        return _EntryFormatter().vformat(template, (), names)
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        raise DataError(
            f"{setting}={template!r} doesn't fit reasoning-gym task {config.task!r}: {type(error).__name__} {error}; "
            f"its entries have {', '.join(sorted(names))}"
        ) from error
