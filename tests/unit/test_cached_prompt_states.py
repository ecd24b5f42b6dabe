"""Hidden states of prompts between steps: computed when due, forgotten when stale, charged once."""

import asyncio
from collections.abc import Sequence

import numpy as np

from gvm_ray.allocators.base import PromptStatesConfig
from gvm_ray.prompt_states import CachedPromptStates
from gvm_ray.types import FloatArray, Pooling, Prompt
from tests.builders import prompt


class CountingLearners:
    """A prompt's state is (its length, how many calls there were)."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.spared = 0  # tokens of each prompt
        self.pooling: Pooling | None = None

    async def prompt_states(self, prompts: Sequence[Prompt], *, pooling: Pooling) -> tuple[FloatArray, int]:
        self.asked.append("".join(prompt.prompt_id for prompt in prompts))
        self.pooling = pooling
        call = len(self.asked)
        await asyncio.sleep(0.01)
        rows = np.array([[len(prompt.token_ids), call] for prompt in prompts], dtype=np.float32)
        return rows, sum(len(prompt.token_ids) - self.spared for prompt in prompts)


def prompts(ids: str) -> list[Prompt]:
    """a has 1 token, b 2 ..."""
    return [prompt(id_, token_ids=[0] * (ord(id_) - 96)) for id_ in ids]


def cached(**settings: object) -> tuple[CachedPromptStates, CountingLearners]:
    learners = CountingLearners()
    config = PromptStatesConfig.model_validate(settings)
    return CachedPromptStates(learners=learners, config=config), learners  # type: ignore[arg-type]


def test_a_run_without_states_computes_none() -> None:
    learners = CountingLearners()
    states = CachedPromptStates(learners=learners, config=None)  # type: ignore[arg-type]
    assert asyncio.run(states.of(prompts("ab"), step=0)) == (None, 0)
    assert learners.asked == []


def test_states_serve_so_many_steps_and_are_charged_when_computed() -> None:
    async def go() -> None:
        states, learners = cached(refresh_steps=2, pooling="last")
        rows, num_tokens = await states.of(prompts("ba"), step=0)
        assert rows is not None
        assert (rows.tolist(), num_tokens) == ([[2, 1], [1, 1]], 3)
        rows, num_tokens = await states.of(prompts("acb"), step=1)
        assert rows is not None
        assert (rows.tolist(), num_tokens) == ([[1, 1], [3, 2], [2, 1]], 3)
        rows, num_tokens = await states.of(prompts("abc"), step=2)
        assert rows is not None
        assert (rows.tolist(), num_tokens) == ([[1, 3], [2, 3], [3, 2]], 3)
        assert learners.asked == ["ba", "c", "ab"]
        assert learners.pooling == "last"

    asyncio.run(go())


def test_what_the_learners_read_is_charged_not_what_the_prompts_hold() -> None:
    states, learners = cached()
    learners.spared = 1
    assert asyncio.run(states.of(prompts("cab"), step=0))[1] == 3


def test_stale_states_are_not_kept() -> None:
    async def go() -> int:
        states, _ = cached(refresh_steps=1)
        for step, ids in enumerate(("abcd", "efg", "h")):
            await states.of(prompts(ids), step=step)
        return len(states.state_dict(step=0)["ids"])  # all that are known: none is too old for the first step

    assert asyncio.run(go()) == 1


def test_what_a_checkpoint_keeps_serves_as_long_as_it_would_have() -> None:
    async def go() -> None:
        states, _ = cached(refresh_steps=2)
        await states.of(prompts("ab"), step=0)
        await states.of(prompts("bc"), step=1)
        resumed, learners = cached(refresh_steps=2)
        resumed.load_state_dict(states.state_dict(step=2))
        rows, num_tokens = await resumed.of(prompts("cba"), step=2)
        assert rows is not None
        assert (rows.tolist(), num_tokens) == ([[3, 2], [2, 1], [1, 1]], 3)  # c's is the second call's, the others' new
        assert learners.asked == ["ba"]
        empty, learners = cached(refresh_steps=1)
        empty.load_state_dict(empty.state_dict(step=0))
        assert (await empty.of(prompts("a"), step=0))[1] == 1

    asyncio.run(go())


def test_overlapping_steps_do_not_take_each_others_states_away() -> None:
    async def go() -> None:
        states, learners = cached(refresh_steps=2)
        await states.of(prompts("ab"), step=0)
        (first, _), (second, _) = await asyncio.gather(
            states.of(prompts("abc"), step=1),  # waits for c while the next one finds a and b stale
            states.of(prompts("abd"), step=2),
        )
        assert first is not None
        assert second is not None
        assert first[:, 0].tolist() == [1, 2, 3]
        assert second[:, 0].tolist() == [1, 2, 4]
        _, num_tokens = await states.of(prompts("abd"), step=3)
        assert num_tokens == 0
        assert learners.asked == ["ab", "c", "abd"]

    asyncio.run(go())
