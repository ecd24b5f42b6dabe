"""reasoning-gym tasks in levels: rendered from their entries, in splits that never meet, with demonstrations."""

import itertools
from collections import Counter

import pytest

from gvm_ray.config.prompts import PromptsConfig, ReasoningGymLevelConfig, ReasoningGymSourceConfig
from gvm_ray.exceptions import DataError
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.tasks import demonstrations, load_tasks
from gvm_ray.tasks.demonstrations import generated_demonstrations
from gvm_ray.tasks.prompt_set import SourceReport
from gvm_ray.tasks.sources.chains import split_of
from gvm_ray.tasks.sources.reasoning_gym import generous_tasks

reasoning_gym = pytest.importorskip("reasoning_gym")


def level(num_numbers, *, max_value=9, **settings):
    parameters = {"min_numbers": num_numbers, "max_numbers": num_numbers, "max_value": max_value}
    return ReasoningGymLevelConfig(parameters=parameters, **settings)


def countdown(*levels, **settings):
    """Small countdown problems, rendered as `3 5 2=10`."""
    values = {
        "task": "countdown",
        "parameters": {"min_target": 1, "max_target": 30, "operators": ("+", "-")},
        "levels": levels or (level(3),),
        "prompt_format": "{numbers}={target}",
        "rationale_format": "{expression!c}",
        "size": 20,
    }
    return ReasoningGymSourceConfig.model_validate(values | settings)


def shown(config, *, num=60, seed=0, excluded=frozenset()):
    return list(generated_demonstrations(config, num=num, seed=seed, excluded=excluded))


def is_solution(response, problem):
    """The expression has the problem's value and uses its numbers, worked out without the library."""
    numbers, target = problem.split("=")
    used = response.replace("+", " ").replace("-", " ").replace("(", " ").replace(")", " ").split()
    return eval(response) == int(target) and sorted(used) == sorted(numbers.split())  # digits and + - ( ) alone


def test_prompt_and_rationale_come_from_the_entry_and_the_scorer_takes_the_rationale():
    score = reasoning_gym.get_score_answer_fn("countdown")
    for task in load_tasks(countdown()):
        entry = task.features["reasoning_gym"]
        numbers, target = entry["metadata"]["numbers"], entry["metadata"]["target"]
        assert task.problem == f"{' '.join(map(str, numbers))}={target}"
        assert is_solution(task.rationale, task.problem)
        assert score(task.rationale, entry) == 1.0


def test_without_formats_the_prompt_is_the_question_in_the_order_of_the_library():
    parameters = {"min_terms": 2, "max_terms": 2}
    tasks = load_tasks(ReasoningGymSourceConfig(task="chain_sum", size=5, seed=3, parameters=parameters))
    entries = reasoning_gym.create_dataset("chain_sum", size=5, seed=3, **parameters)
    assert [(task.problem, task.answer) for task in tasks] == [(e["question"], e["answer"]) for e in entries]
    assert all(task.rationale is None for task in tasks)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"prompt_format": "{numbers}={goal}"}, r"prompt_format='{numbers}={goal}' doesn't fit.*its entries have .*ta"),
        ({"rationale_format": "{expression"}, "rationale_format='{expression' doesn't fit"),
        ({"prompt_format": "{}"}, "prompt_format='{}' doesn't fit"),
    ],
)
def test_a_format_that_does_not_fit_the_entries_is_refused(settings, complaint):
    with pytest.raises(DataError, match=complaint):
        load_tasks(countdown(**settings))


def test_levels_share_the_size_by_weight_and_no_problem_stands_twice():
    config = countdown(level(3, weight=3), level(4), size=40)
    tasks = load_tasks(config)
    assert Counter(task.features["level"] for task in tasks) == {0: 30, 1: 10}
    assert all(len(task.problem.split()) == (3, 4)[task.features["level"]] for task in tasks)
    assert len({task.problem for task in tasks}) == 40
    assert tasks == load_tasks(config)
    assert tasks != load_tasks(config.model_copy(update={"seed": 1}))


def test_levels_that_overlap_do_not_give_a_problem_twice():
    tasks = load_tasks(countdown(level(3), level(3, max_value=8), size=60))
    assert len({task.problem for task in tasks}) == 60


def test_a_small_level_gives_all_it_has_and_the_others_make_up_for_it():
    # Sums and positive differences of two numbers below 3, in either order; all of them have one digit.
    pairs = [(a, b, t) for a, b in itertools.product((1, 2), repeat=2) for t in {a + b, abs(a - b)} if t]
    tasks = load_tasks(countdown(level(2, max_value=2), level(3), size=30))
    assert {task.problem for task in tasks if task.features["level"] == 0} == {f"{a} {b}={t}" for a, b, t in pairs}
    assert len(tasks) == 30
    with pytest.raises(DataError, match=f"size=30 .* only {len(pairs)} in .* write size={len(pairs)}"):
        load_tasks(countdown(level(2, max_value=2), size=30))


def test_splits_and_their_halves_share_no_problem():
    first, second, train = (
        {task.problem for task in load_tasks(countdown(split=split, half=half))}
        for split, half in (("test", "first"), ("test", "second"), ("train", "both"))
    )
    assert len(first) == len(second) == len(train) == 20
    assert not first & second | first & train | second & train
    assert all(split_of(problem) == "test" for problem in first | second)


def test_demonstrations_solve_problems_of_the_training_split():
    pairs = shown(countdown(level(3), level(4), split="train"))
    assert len(pairs) == 60
    assert all(is_solution(response, problem) and split_of(problem) == "train" for problem, response in pairs)
    assert {len(problem.split()) for problem, _ in pairs} == {3, 4}
    assert pairs == shown(countdown(level(3), level(4), split="train"))
    assert pairs != shown(countdown(level(3), level(4), split="train"), seed=1)


def test_demonstrations_have_weights_of_their_own_where_they_are_given():
    pairs = shown(countdown(level(3, weight=9, demonstration_weight=1), level(4)), num=300)
    assert sum(len(problem.split()) == 3 for problem, _ in pairs) / 300 == pytest.approx(0.5, abs=0.1)


def test_an_inaccurate_demonstration_answers_another_problem_of_the_level():
    pairs = shown(countdown(level(3, demonstration_accuracy=0.5), level(4)), num=600)
    right = {3: [], 4: []}
    for problem, response in pairs:
        right[len(problem.split())].append(is_solution(response, problem))
    assert all(right[4])
    assert sum(right[3]) / len(right[3]) == pytest.approx(0.5, abs=0.1)
    wrong = [response for (problem, response) in pairs if not is_solution(response, problem)]
    assert all(sum(response.count(sign) for sign in "+-") == 2 for response in wrong)  # three numbers: of that level


def test_demonstrations_keep_off_the_evaluation():
    config = PromptsConfig(train=countdown(level(2)), eval=countdown(level(2), size=40, seed=7))
    tokenizer = build_character_tokenizer()
    evaluated = {task.problem for task in load_tasks(config.eval)}
    drawn = {tokenizer.decode(d.prompt_token_ids) for d in demonstrations(config, tokenizer, num=200, seed=0)}
    assert drawn
    assert not drawn & evaluated


def test_a_level_without_a_problem_to_show_is_named():
    config = countdown(level(2, max_value=2), size=6)
    with pytest.raises(DataError, match="level 0 of reasoning-gym task 'countdown' has no problem left"):
        shown(config, excluded=frozenset(task.problem for task in load_tasks(config)))
    with pytest.raises(DataError, match="no demonstrations without rationale_format"):
        shown(countdown(rationale_format=None))


def test_a_task_whose_scorer_pays_for_any_text_is_named_in_the_report() -> None:
    entries = [
        {"task": task, **entry}
        for task in ("game_of_life_halting", "chain_sum", "prime_factorization", "boxnet")
        for entry in reasoning_gym.create_dataset(task, size=3, seed=1)
    ]
    assert generous_tasks(entries) == ("game_of_life_halting",)
    report = SourceReport(loaded=3, kept=3, generous_tasks=("game_of_life_halting",))
    assert "warning: the scorer of reasoning-gym task 'game_of_life_halting' pays for any text" in report.lines("x")[1]
