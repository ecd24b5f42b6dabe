"""The arithmetic family: worked by hand modulo 7, splits that never meet, demonstrations of a known accuracy."""

import itertools
from collections import Counter

import pytest

from gvm_ray.config.prompts import ArithmeticLevelConfig, ArithmeticSourceConfig
from gvm_ray.envs.arithmetic import (
    arithmetic_tasks,
    demonstrations,
    is_valid_rationale,
    num_valid_rationales,
    running_results,
    split_of,
)
from gvm_ray.exceptions import DataError

ACCURATE = {"+": 1.0, "-": 1.0, "*": 1.0, "@": 1.0}


def level(num_operations, operator, weight=1.0):
    return ArithmeticLevelConfig(num_operations=num_operations, operator=operator, weight=weight)


def source(*levels, **settings):
    return ArithmeticSourceConfig(levels=levels, **settings)


def test_chains_are_worked_from_left_to_right_modulo_m():
    # 3+5 = 8 = 1; 1*2 = 2; 2@4 = 6+4+4 = 14 = 0; 0-1 = -1 = 6
    assert running_results("3+5*2@4-1=", modulus=7) == [1, 2, 0, 6]
    assert running_results("3+5*2@4-1=", modulus=10) == [8, 6, 6, 5]


def test_a_task_has_the_reference_rationale_and_features():
    tasks = arithmetic_tasks(source(level(2, "+"), level(3, "@"), size=40))
    for task in tasks:
        results = running_results(task.problem, modulus=7)
        assert task.answer == str(results[-1])
        assert task.rationale == " ".join(map(str, results[:-1])) + f" \\boxed{{{results[-1]}}}"
        assert task.prompt_id == "arithmetic-7-" + task.problem[:-1].rstrip()
        assert len(task.problem) == 14  # six operations wide, whatever the chain
    features = Counter((t.features["level"], t.features["num_operations"], t.features["operator"]) for t in tasks)
    assert features == {(0, 2, "+"): 20, (1, 3, "@"): 20}


def test_operators_go_up_to_the_levels_own_which_is_always_there():
    for task in arithmetic_tasks(source(level(3, "*"), size=200)):
        operators = task.problem.rstrip("=").rstrip()[1::2]
        assert "*" in operators
        assert set(operators) <= set("+-*")


def test_valid_rationales_leave_any_running_result_but_the_last_unwritten():
    problem = "3+5*2@4  ="  # running results 1 2 0
    valid = [f"{first} {second} \\boxed{{0}}" for first in "1_" for second in "2_"]
    assert all(is_valid_rationale(text, problem=problem, modulus=7) for text in valid)
    assert num_valid_rationales(problem) == len(valid) == 4
    for wrong in ("2 1 \\boxed{0}", "1 2 \\boxed{1}", "1  2 \\boxed{0}", "1 2 0", "3 _ \\boxed{0}", "_ \\boxed{0}"):
        assert not is_valid_rationale(wrong, problem=problem, modulus=7)


@pytest.mark.parametrize("modulus", [2, 7, 10])
def test_train_and_test_share_no_problem_and_none_stands_twice(modulus):
    levels = (level(3, "+"), level(4, "@"))
    train = [t.problem for t in arithmetic_tasks(source(*levels, modulus=modulus, size=60))]
    test = [t.problem for t in arithmetic_tasks(source(*levels, modulus=modulus, size=20, split="test"))]
    assert len(set(train)) == 60
    assert len(set(test)) == 20
    assert not set(train) & set(test)


def test_one_problem_in_five_is_a_test_problem():
    problems = [f"{a}+{b}*{c}-{d}=" for a, b, c, d in itertools.product(range(10), repeat=4)]
    share = sum(split_of(problem) == "test" for problem in problems) / len(problems)
    assert share == pytest.approx(0.2, abs=0.02)


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others():
    first, again, other = (arithmetic_tasks(source(level(3, "*"), size=50, seed=s)) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_small_level_gives_all_it_has_and_the_others_make_up_for_it():
    # 49 problems a+b modulo 7; those of the training split are counted by hand-written enumeration
    available = sum(split_of(f"{a}+{b}=") == "train" for a in range(7) for b in range(7))
    tasks = arithmetic_tasks(source(level(1, "+", weight=9), level(4, "+"), size=200))
    counts = Counter(task.features["level"] for task in tasks)
    assert counts == {0: available, 1: 200 - available}


def test_weights_are_shares():
    tasks = arithmetic_tasks(source(level(4, "+", weight=3), level(4, "-", weight=1), size=100))
    assert Counter(task.features["level"] for task in tasks) == {0: 75, 1: 25}


def test_a_space_that_is_too_small_says_how_many_problems_it_has():
    available = sum(split_of(f"{a}+{b}=") == "train" for a in range(7) for b in range(7))
    with pytest.raises(DataError, match=f"size=1000 .* {available} to give .* write size={available}"):
        arithmetic_tasks(source(level(1, "+"), size=1000))


def test_the_same_level_twice_is_refused():
    with pytest.raises(DataError, match="levels 0 and 1 are both"):
        arithmetic_tasks(source(level(2, "+"), level(2, "+"), size=10))


def test_accurate_demonstrations_are_valid_and_from_the_training_split():
    config = source(level(3, "*"), level(4, "@"), step_accuracy=ACCURATE, skip_probability=0.5)
    unwritten = Counter()
    for problem, worked in demonstrations(config, num=400, seed=0):
        assert split_of(problem) == "train"
        assert is_valid_rationale(worked, problem=problem, modulus=7)
        unwritten[worked.count("_")] += 1
    assert set(unwritten) == {0, 1, 2, 3}


def test_steps_are_wrong_as_often_as_asked_and_the_chain_goes_on_from_the_wrong_value():
    config = source(level(2, "*"), step_accuracy={"+": 1.0, "-": 1.0, "*": 0.4}, skip_probability=0.0)
    right, steps, wrong_digits = 0, 0, Counter()
    for problem, worked in demonstrations(config, num=4000, seed=0):
        if problem[1] != "*":
            continue
        first, second = (int(text.strip("\\boxed{}")) for text in worked.split(" "))
        truth = running_results(problem, modulus=7)[0]
        steps += 1
        right += first == truth
        wrong_digits[(first - truth) % 7] += 1
        if problem[3] != "*":  # an accurate operator: right, given the value before it
            assert second == running_results(f"{first}{problem[3:5]}=", modulus=7)[0]
    assert right / steps == pytest.approx(0.4, abs=0.04)
    assert all(wrong_digits[offset] / steps == pytest.approx(0.1, abs=0.03) for offset in range(1, 7))


def test_excluded_problems_are_never_shown():
    config = source(level(1, "+"))
    shown = {problem for problem, _ in demonstrations(config, num=500, seed=0)}
    held_out = frozenset(sorted(shown)[:5])
    assert not held_out & {problem for problem, _ in demonstrations(config, num=500, seed=0, excluded=held_out)}
    with pytest.raises(DataError, match="no problem left for demonstrations"):
        list(demonstrations(config, num=1, seed=0, excluded=frozenset(shown)))
