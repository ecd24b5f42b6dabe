"""Several turns in one response: what the environment answers, what the engine reads, what the learner learns."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import build_tiny_model as build_learner_model
from tiny_models import build_tiny_model, make_prompt, reference_logprobs
from turn_cases import PROMPT, said

from gvm_ray.actors.pools import SamplingPools
from gvm_ray.config.engine import EngineConfig
from gvm_ray.engines import create_engine
from gvm_ray.engines.server import EngineServer
from gvm_ray.engines.turns import episodes_by_sample, next_turns
from gvm_ray.exceptions import ObjectsLost
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.learner.sequences import pad_samples, train_sample
from gvm_ray.ledger import turn_metrics
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.types import (
    Completion,
    GroupOutcome,
    GroupRef,
    ModelSpec,
    OpenEpisodes,
    OpenOutcome,
    RolloutGroup,
    SampleRequest,
    SamplingParameters,
)
from tests.builders import sample_request

SAMPLING = SamplingParameters(temperature=1.0, max_tokens=24)


# --- the engine -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def open_episodes(completions: Sequence[Completion], observations: Sequence[str]) -> OpenEpisodes:
    return OpenEpisodes(group=RolloutGroup.of(PROMPT, completions), observations=tuple(observations))


def continued(model_path: str, episodes: OpenEpisodes, request: SampleRequest) -> RolloutGroup:
    """The request's group with its next turn, sampled by the transformers engine."""

    async def run() -> list[RolloutGroup]:
        engine = create_engine("transformers", ModelSpec(path=model_path, max_model_len=64), config=EngineConfig())
        server = EngineServer(lambda: engine, in_flight="keep")
        groups = next_turns(
            server,
            [request],
            SAMPLING,
            episodes=episodes_by_sample([[episodes]]),
            tokenizer=build_character_tokenizer(),
        )
        return [group async for group in groups]

    (group,) = asyncio.run(run())
    return group


def test_the_next_turn_follows_what_was_said(model_path: str) -> None:
    first = [said("3"), said("4!")]
    group = continued(model_path, open_episodes(first, ["<no>", "<never>"]), sample_request(PROMPT, num_samples=2))
    for before, observation, completion in zip(first, ["<no>", "<never>"], group.completions, strict=True):
        n, m = len(before.token_ids), len(observation)
        assert completion.token_ids[:n].tolist() == before.token_ids.tolist()
        assert build_character_tokenizer().decode(completion.token_ids[n : n + m]) == observation
        assert completion.sampled is not None
        assert completion.sampled.tolist() == [True] * n + [False] * m + [True] * (len(completion.token_ids) - n - m)
        assert completion.logprobs[:n].tolist() == before.logprobs.tolist()
        assert not completion.logprobs[n : n + m].any()
        assert completion.policy_versions[:n].tolist() == [3] * n
        assert completion.turns[0] == before.text
        assert completion.text == before.text + observation + completion.turns[1]
        assert len(completion.token_ids) <= SAMPLING.max_tokens
        expected = reference_logprobs(model_path, {}, prompt=PROMPT, completion=completion, temperature=1.0)
        np.testing.assert_allclose(completion.logprobs[n + m :], expected[n + m :], atol=1e-4)
    assert group.num_tokens.tolist() == [
        len(c.token_ids) - len(o) for c, o in zip(group.completions, ["<no>", "<never>"], strict=True)
    ]
    assert group.num_turns.tolist() == [2, 2]


def test_turns_have_seeds_of_their_own(model_path: str) -> None:
    episodes = open_episodes([said("3"), said("3")], ["", ""])
    same = sample_request(PROMPT, seeds=(5, 5))
    other = sample_request(PROMPT, seeds=(5, 6))
    first, second = continued(model_path, episodes, same).completions
    assert first.token_ids.tolist() == second.token_ids.tolist()
    first, second = continued(model_path, episodes, other).completions
    assert first.token_ids.tolist() != second.token_ids.tolist()


def test_an_answer_that_leaves_no_room_cuts_the_response(model_path: str) -> None:
    episodes = open_episodes([said("3"), said("4")], ["x" * 22, "x" * 21])
    group = continued(model_path, episodes, sample_request(PROMPT, num_samples=2))
    assert group.truncated.tolist()[0]
    assert group.completion(0).token_ids.tolist() == said("3").token_ids.tolist()
    assert group.num_turns.tolist() == [1, 2]
    assert len(group.completion(1).token_ids) == SAMPLING.max_tokens


# --- the pools --------------------------------------------------------------------------------------------------------
class ScriptedGenerators:
    """Answers with outcomes: a sample's index says how many turns it takes. Loses the episodes when told to."""

    def __init__(self, *, lose: int = 0) -> None:
        self.asked: list[dict[str, tuple[int, ...]]] = []
        self._lose = lose
        self._turns: dict[tuple[str, int], int] = {}

    async def sample(
        self,
        requests: Sequence[SampleRequest],
        sampling: SamplingParameters,
        *,
        score: Callable[..., Any],
        episodes: dict[Any, Any] | None = None,
    ) -> list[GroupOutcome | OpenOutcome]:
        self.asked.append({request.prompt.prompt_id: request.sample_indices for request in requests})
        if episodes is None:
            self._turns |= {(r.prompt.prompt_id, index): 0 for r in requests for index in r.sample_indices}
        else:
            assert set(episodes) == {(r.prompt.prompt_id, index) for r in requests for index in r.sample_indices}
            if self._lose:
                self._lose -= 1
                raise ObjectsLost("the node is gone")
        return [outcome for request in requests for outcome in self._outcomes(request)]

    def _outcomes(self, request: SampleRequest) -> list[GroupOutcome | OpenOutcome]:
        name = request.prompt.prompt_id
        for index in request.sample_indices:
            self._turns[name, index] += 1
        ref = GroupRef(ref=object(), index=0)
        over = [index for index in request.sample_indices if self._turns[name, index] > index]
        left = tuple(index for index in request.sample_indices if index not in over)
        outcomes: list[GroupOutcome | OpenOutcome] = (
            [OpenOutcome(prompt_id=name, sample_indices=left, ref=ref)] if left else []
        )
        if over:
            group = RolloutGroup.of(request.prompt, [said("0")] * len(over), sample_indices=tuple(over))
            outcomes.append(GroupOutcome.of(group, ref=ref))
        return outcomes


def sampled_by(generators: Any) -> list[GroupOutcome]:
    pools = SamplingPools(generators=generators, rewards=None, clock=PhaseClock())  # type: ignore[arg-type]
    requests = [sample_request(make_prompt(name), num_samples=3) for name in ("b", "a")]
    return asyncio.run(pools.sample_and_score(requests, SAMPLING))


@pytest.mark.parametrize("lose", [0, 1, 2])
def test_every_sample_comes_back_once_and_in_order(lose: int) -> None:
    generators = ScriptedGenerators(lose=lose)
    outcomes = sampled_by(generators)
    assert [(o.prompt_id, o.sample_indices) for o in outcomes] == [(p, (i,)) for p in ("b", "a") for i in range(3)]
    if not lose:
        assert generators.asked == [
            {"b": (0, 1, 2), "a": (0, 1, 2)},
            {"b": (1, 2), "a": (1, 2)},
            {"b": (2,), "a": (2,)},
        ]


# --- the learner ------------------------------------------------------------------------------------------------------
def test_the_learner_reads_the_answers_but_does_not_learn_them(tmp_path: Path) -> None:
    from gvm_ray.learner.policy import PolicyModule, load_causal_lm

    build_learner_model(tmp_path)
    policy = PolicyModule(
        load_causal_lm(tmp_path, revision=None, trust_remote_code=False), temperature=1.0, chunk_tokens=8
    )
    mask = [True, True, False, False, True, True]
    with_answer = RolloutGroup.of(PROMPT, [said("12345", turns=("1", "4"), sampled=mask)])
    whole = RolloutGroup.of(PROMPT, [said("12345")])
    padded = pad_samples([train_sample(with_answer, 0), train_sample(whole, 0)], device=torch.device("cpu"))
    assert padded.mask.tolist() == [mask, [True] * 6]
    with torch.no_grad():
        logprobs, _ = policy(padded)
    assert not logprobs[0, 2:4].any()
    # Two rows of one batch are the same to rounding: some CPUs' kernels don't treat all rows alike.
    torch.testing.assert_close(logprobs[0][padded.mask[0]], logprobs[1][padded.mask[0]], rtol=1e-6, atol=0)
    assert with_answer.num_tokens.tolist() == [4]


def test_turns_are_counted() -> None:
    def outcome(*turns: tuple[str, ...]) -> GroupOutcome:
        group = RolloutGroup.of(PROMPT, [said("x", turns=t) for t in turns])
        return GroupOutcome.of(group, ref=GroupRef(ref=None, index=0))

    assert turn_metrics([outcome((), ())]) == {}
    assert turn_metrics([outcome((), ()), outcome(("1", "2"), ("1", "2", "3"))]) == {
        "turns/mean": 1.75,
        "turns/max": 3.0,
    }


def test_a_selection_keeps_what_belongs_to_each_sample() -> None:
    group = RolloutGroup.of(PROMPT, [said("1"), said("22", turns=("2", "2"), sampled=[True, False, True]), said("3")])
    part = group.select([1, 2])
    assert part.sample_indices == (1, 2)
    assert part.texts == ("22", "3")
    assert part.num_tokens.tolist() == [2, 2]
    assert part.completion(0).turns == ("2", "2")
    assert part.completion(0).sampled is not None
    assert part.rewards is None
