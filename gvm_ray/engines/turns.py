"""The next turn of episodes: what an engine is asked for, and how its answer joins what was said before."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gvm_ray.engines.server import EngineServer
from gvm_ray.types import (
    BoolArray,
    Completion,
    IntArray,
    OpenEpisodes,
    Prompt,
    RolloutGroup,
    SampleKey,
    SampleRequest,
    SamplingParameters,
    turn_seed,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """One sample up to its next turn."""

    prompt: Prompt
    said: Completion
    observation: str  # what the environment answered last

    def observed_ids(self, tokenizer: Any) -> IntArray:
        """[T] the tokens of the answer."""
        return np.array(tokenizer(self.observation, add_special_tokens=False)["input_ids"], dtype=np.int32)


def episodes_by_sample(chunks: Sequence[Sequence[OpenEpisodes]]) -> dict[SampleKey, Episode]:
    """The samples of some tuples of open episodes."""
    return {
        (part.group.prompt.prompt_id, index): Episode(
            prompt=part.group.prompt, said=part.group.completion(position), observation=part.observations[position]
        )
        for chunk in chunks
        for part in chunk
        for position, index in enumerate(part.group.sample_indices)
    }


async def next_turns(
    server: EngineServer,
    requests: Sequence[SampleRequest],
    sampling: SamplingParameters,
    *,
    episodes: Mapping[SampleKey, Episode],
    tokenizer: Any,
) -> AsyncIterator[RolloutGroup]:
    """The groups of the requests with one turn more, as they are finished.

    The turns and answers of a response have `sampling.max_tokens` tokens together; one whose answer leaves no room for
    another token is cut before it.
    """

    async def turn(request: SampleRequest, position: int) -> Completion:
        episode = episodes[request.prompt.prompt_id, request.sample_indices[position]]
        observed = episode.observed_ids(tokenizer)
        room = sampling.max_tokens - len(episode.said.token_ids) - len(observed)
        if room < 1:
            return replace(episode.said, finish_reason="length")
        asked = _request(episode, observed, seed=request.seeds[position])
        async for _, (completion,) in server.sample([asked], replace(sampling, max_tokens=room)):
            return _joined(episode, observed, completion)
        raise AssertionError("a request is answered or raises")

    async def group(request: SampleRequest) -> RolloutGroup:
        completions = await asyncio.gather(*(turn(request, position) for position in range(len(request.seeds))))
        return RolloutGroup.of(request.prompt, completions, sample_indices=request.sample_indices)

    groups = [asyncio.ensure_future(group(request)) for request in requests]
    try:
        for done in asyncio.as_completed(groups):
            yield await done
    finally:
        for task in groups:
            task.cancel()


def _request(episode: Episode, observed: IntArray, *, seed: int) -> SampleRequest:
    """One sample that goes on from all that was said; every turn has a seed of its own."""
    seed = turn_seed(seed, turn=len(episode.said.policy_turns))
    read = np.concatenate([episode.prompt.token_ids, episode.said.token_ids, observed])
    prompt = replace(episode.prompt, token_ids=read)
    return SampleRequest(prompt=prompt, sample_indices=(0,), seeds=(seed,))


def _joined(episode: Episode, observed: IntArray, turn: Completion) -> Completion:
    """What was said, what the environment answered, and the new turn as one response."""
    said = episode.said
    before: BoolArray = np.ones(len(said.token_ids), dtype=np.bool_) if said.sampled is None else said.sampled
    silent = np.zeros(len(observed), dtype=np.float32)
    return Completion(
        token_ids=np.concatenate([said.token_ids, observed, turn.token_ids]),
        logprobs=np.concatenate([said.logprobs, silent, turn.logprobs]),
        policy_versions=np.concatenate(
            [
                said.policy_versions,
                np.full(len(observed), turn.policy_versions[0], dtype=np.int32),
                turn.policy_versions,
            ]
        ),
        finish_reason=turn.finish_reason,
        text=said.text + episode.observation + turn.text,
        turns=(*said.policy_turns, turn.text),
        sampled=np.concatenate([before, silent.astype(np.bool_), np.ones(len(turn.token_ids), dtype=np.bool_)]),
    )
