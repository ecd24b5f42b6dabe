"""The next turn of multi-turn episodes: the request to the engine, and its answer joined to the episode so far."""

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
    said: Completion  # all turns and observations so far, but for the latest observation
    observation: str  # the environment's latest answer

    def observed_ids(self, tokenizer: Any) -> IntArray:
        """Tokens [T] of the observation."""
        return np.array(tokenizer(self.observation, add_special_tokens=False)["input_ids"], dtype=np.int32)


def episodes_by_sample(chunks: Sequence[Sequence[OpenEpisodes]]) -> dict[SampleKey, Episode]:
    """Map (prompt_id, sample index) to its episode, over chunks of open episodes."""
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
    """Sample one more turn for the requests, and yield each group when it is finished.

    `sampling.max_tokens` limits a response's turns and observations together. If an observation leaves no room for
    another token, the response is cut before it.
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
    """Build the request that continues an episode; every turn has its own seed."""
    seed = turn_seed(seed, turn=len(episode.said.policy_turns))
    read = np.concatenate([episode.prompt.token_ids, episode.said.token_ids, observed])
    prompt = replace(episode.prompt, token_ids=read)
    return SampleRequest(prompt=prompt, sample_indices=(0,), seeds=(seed,))


def _joined(episode: Episode, observed: IntArray, turn: Completion) -> Completion:
    """Join the response so far, the observation and the new turn into one response."""
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
