"""Families of chains of operations: worked by hand, splits that never meet, demonstrations of a known accuracy."""

import itertools
from collections import Counter
from typing import get_args

import pytest
from pydantic import ValidationError

from gvm_ray.config.prompts import (
    ArithmeticSourceConfig,
    ChainLevelConfig,
    ChainSourceConfig,
    ListProgramSourceConfig,
)
from gvm_ray.exceptions import DataError
from gvm_ray.tasks import load_tasks
from gvm_ray.tasks.prompt_set import chain_family
from gvm_ray.tasks.sources.chains import half_of, split_of

each_family = pytest.mark.parametrize("source_of", get_args(ChainSourceConfig))


def level(num_operations, operator, weight=1.0):
    return ChainLevelConfig(num_operations=num_operations, operator=operator, weight=weight)


def source(*levels, **settings):
    return ArithmeticSourceConfig(levels=levels, **settings)


def two_levels(source_of, **settings):
    """An easy and a hard level of a family."""
    easiest, hardest = source_of.operators[0], source_of.operators[-1]
    return source_of(levels=(level(2, easiest), level(3, hardest)), **settings)


def problems(config):
    return [task.problem for task in load_tasks(config)]


def is_valid_rationale(family, rationale, *, problem):
    """Whether the text is the right running results in order, any of them unwritten, and the boxed last one."""
    *running, last = family.running_results(problem)
    *written, boxed = rationale.split(" ")
    return (
        boxed == f"\\boxed{{{last}}}"
        and len(written) == len(running)
        and all(text in (result, "_" * len(result)) for text, result in zip(written, running, strict=True))
    )


def test_arithmetic_is_worked_from_left_to_right_modulo_m():
    # 3+5 = 8 = 1; 1*2 = 2; 2@4 = 6+4+4 = 14 = 0; 0-1 = -1 = 6
    assert chain_family(ArithmeticSourceConfig()).running_results("3+5*2@4-1=") == ["1", "2", "0", "6"]
    assert chain_family(ArithmeticSourceConfig(modulus=10)).running_results("3+5*2@4-1=") == ["8", "6", "6", "5"]


def test_list_programs_are_worked_from_left_to_right():
    family = chain_family(ListProgramSourceConfig(length=5))
    assert family.running_results("31492rtic =") == ["29413", "94132", "05243", "94756"]


def test_a_task_has_the_reference_rationale_and_features():
    family = chain_family(source(level(2, "+")))
    tasks = load_tasks(source(level(2, "+"), level(3, "@"), size=40))
    for task in tasks:
        results = family.running_results(task.problem)
        assert task.answer == results[-1]
        assert task.rationale == " ".join(results[:-1]) + f" \\boxed{{{results[-1]}}}"
        assert task.prompt_id == "arithmetic-7-" + task.problem[:-1].rstrip()
        assert len(task.problem) == 14  # six operations wide, whatever the chain
    features = Counter((t.features["level"], t.features["num_operations"], t.features["operator"]) for t in tasks)
    assert features == {(0, 2, "+"): 20, (1, 3, "@"): 20}


@each_family
def test_problems_of_a_family_have_one_width_and_the_reference_rationale_is_valid(source_of):
    config = two_levels(source_of, size=60)
    family = chain_family(config)
    tasks = load_tasks(config)
    assert len({len(task.problem) for task in tasks}) == 1
    for task in tasks:
        assert is_valid_rationale(family, task.rationale, problem=task.problem)
        assert task.answer == family.running_results(task.problem)[-1]


def test_operators_go_up_to_the_levels_own_which_is_always_there():
    for problem in problems(source(level(3, "*"), size=200)):
        operators = problem.rstrip("=").rstrip()[1::2]
        assert "*" in operators
        assert set(operators) <= set("+-*")
    for problem in problems(ListProgramSourceConfig(levels=(level(3, "i"),), size=200)):
        operators = problem.rstrip("=").rstrip()[4:]
        assert "i" in operators
        assert set(operators) <= set("rti")


@each_family
def test_train_and_test_share_no_problem_and_none_stands_twice(source_of):
    train, test = problems(two_levels(source_of, size=60)), problems(two_levels(source_of, size=20, split="test"))
    assert len(set(train)) == 60
    assert len(set(test)) == 20
    assert not set(train) & set(test)


@each_family
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_halves_of_a_split_share_no_problem_and_make_up_the_whole(source_of, split):
    first, second = (
        set(problems(two_levels(source_of, size=40, split=split, half=half, seed=seed)))
        for seed, half in enumerate(("first", "second"))
    )
    assert len(first) == len(second) == 40
    assert not first & second
    whole = set(problems(two_levels(source_of, size=40, split=split)))
    assert all(split_of(problem[:-1].rstrip()) == split for problem in first | second | whole)


def test_a_level_that_is_listed_in_full_is_cut_into_halves_too():
    contents = [f"{a}+{b}" for a in range(7) for b in range(7)]
    for half in ("first", "second"):
        wanted = {content for content in contents if split_of(content) == "test" and half_of(content) == half}
        config = source(level(1, "+"), split="test", half=half, size=len(wanted))
        assert {problem[:-1].rstrip() for problem in problems(config)} == wanted


def test_one_problem_in_five_is_a_test_problem():
    contents = [f"{a}+{b}*{c}-{d}" for a, b, c, d in itertools.product(range(10), repeat=4)]
    share = sum(split_of(content) == "test" for content in contents) / len(contents)
    assert share == pytest.approx(0.2, abs=0.02)


@each_family
def test_the_same_seed_gives_the_same_tasks_and_another_seed_others(source_of):
    first, again, other = (load_tasks(two_levels(source_of, size=50, seed=s)) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_small_level_gives_all_it_has_and_the_others_make_up_for_it():
    # 49 problems a+b modulo 7; those of the training split are counted by hand-written enumeration
    available = sum(split_of(f"{a}+{b}") == "train" for a in range(7) for b in range(7))
    tasks = load_tasks(source(level(1, "+", weight=9), level(4, "+"), size=200))
    counts = Counter(task.features["level"] for task in tasks)
    assert counts == {0: available, 1: 200 - available}


def test_weights_are_shares():
    tasks = load_tasks(source(level(4, "+", weight=3), level(4, "-", weight=1), size=100))
    assert Counter(task.features["level"] for task in tasks) == {0: 75, 1: 25}


def test_a_space_that_is_too_small_says_how_many_problems_it_has():
    available = sum(split_of(f"{a}+{b}") == "train" for a in range(7) for b in range(7))
    with pytest.raises(DataError, match=f"size=1000 .* {available} in .* write size={available}"):
        load_tasks(source(level(1, "+"), size=1000))


@each_family
def test_the_same_level_twice_is_refused(source_of):
    twice = level(2, source_of.operators[0])
    with pytest.raises(DataError, match="levels 0 and 1 are both"):
        load_tasks(source_of(levels=(twice, twice), size=10))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"levels": ()}, r"levels is empty; write at least one.*operator = 'r'"),
        ({"levels": (level(2, "+"),)}, r"operator '\+' is unknown; write one of 'r', 't', 'i', 'c'"),
        ({"step_accuracy": {"rt": 0.5}}, r"operator 'rt' is unknown; write one of 'r', 't', 'i', 'c'"),
        ({"levels": (level(5, "r"),), "max_operations": 4}, "write max_operations=5"),
    ],
)
def test_levels_that_do_not_fit_the_family_are_refused(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        ListProgramSourceConfig(**settings)


@each_family
def test_accurate_demonstrations_are_valid_and_from_the_training_split(source_of):
    config = two_levels(source_of, skip_probability=0.5)
    family = chain_family(config)
    unwritten = Counter()
    for problem, worked in family.demonstrations(config, num=400, seed=0):
        assert split_of(problem[:-1].rstrip()) == "train"
        assert is_valid_rationale(family, worked, problem=problem)
        unwritten[sum("_" in result for result in worked.split(" "))] += 1
    assert set(unwritten) == {0, 1, 2}


def test_demonstrations_have_weights_of_their_own_where_they_are_given():
    easy, hard = level(2, "+", weight=9), level(3, "@")

    def share_of_easy(*levels):
        config = source(*levels)
        shown = list(chain_family(config).demonstrations(config, num=1000, seed=0))
        return sum("@" not in problem for problem, _ in shown) / len(shown)

    assert share_of_easy(easy, hard) == pytest.approx(0.9, abs=0.04)
    weighted = (item.model_copy(update={"demonstration_weight": 2.0}) for item in (easy, hard))
    assert share_of_easy(*weighted) == pytest.approx(0.5, abs=0.06)


def test_steps_are_wrong_as_often_as_asked_and_the_chain_goes_on_from_the_wrong_value():
    config = source(level(2, "*"), step_accuracy={"+": 1.0, "-": 1.0, "*": 0.4}, skip_probability=0.0)
    family = chain_family(config)
    right, steps, wrong_digits = 0, 0, Counter()
    for problem, worked in family.demonstrations(config, num=4000, seed=0):
        if problem[1] != "*":
            continue
        first, second = (text.strip("\\boxed{}") for text in worked.split(" "))
        truth = family.running_results(problem)[0]
        steps += 1
        right += first == truth
        wrong_digits[(int(first) - int(truth)) % 7] += 1
        if problem[3] != "*":  # an accurate operator: right, given the value before it
            assert second == family.running_results(f"{first}{problem[3:5]}=")[0]
    assert right / steps == pytest.approx(0.4, abs=0.04)
    assert all(wrong_digits[offset] / steps == pytest.approx(0.1, abs=0.03) for offset in range(1, 7))


def test_a_mistaken_list_is_that_of_another_operation():
    config = ListProgramSourceConfig(levels=(level(1, "t"),), step_accuracy={"r": 0.4, "t": 0.4})
    family = chain_family(config)
    taken_for = Counter()
    for problem, worked in family.demonstrations(config, num=2000, seed=0):
        digits, result = problem[:4], worked.strip("\\boxed{}")
        right = family.running_results(problem)[0]
        others = {family.running_results(f"{digits}{operation}=")[0] for operation in "rtic"} - {right}
        assert result == right or result in others
        taken_for[result == right] += 1
    assert taken_for[True] / 2000 == pytest.approx(0.4, abs=0.04)


@each_family
def test_excluded_problems_are_never_shown(source_of):
    config = source_of(levels=(level(1, source_of.operators[0]),))
    family = chain_family(config)
    shown = {problem for problem, _ in family.demonstrations(config, num=500, seed=0)}
    held_out = frozenset(sorted(shown)[:5])
    assert not held_out & {problem for problem, _ in family.demonstrations(config, num=500, seed=0, excluded=held_out)}


def test_a_level_without_a_problem_to_show_is_named():
    config = source(level(1, "+"))
    family = chain_family(config)
    shown = frozenset(problem for problem, _ in family.demonstrations(config, num=500, seed=0))
    with pytest.raises(DataError, match=r"level \(num_operations=1, operator='\+'\) has no problem left"):
        list(family.demonstrations(config, num=1, seed=0, excluded=shown))
