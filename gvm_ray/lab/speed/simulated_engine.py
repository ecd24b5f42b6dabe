"""A simulated engine, which sleeps instead of computing."""

import heapq
import json
import random
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from gvm_ray.config.engine import EngineConfig
from gvm_ray.engines.open_requests import check_lengths
from gvm_ray.types import Completion, SampleRequest, SamplingParameters


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """A model of continuous batching with three time constants and log-normal response lengths.

    The defaults assume a model of 1.5 billion parameters in bfloat16 on one A100. Qwen's published speed of
    Qwen2.5-1.5B in vLLM 0.6.3 is 183 tokens/s at batch size 1, which gives `step_s`, and 152 tokens/s after 30,720
    tokens of context, which is 36 ns per step for each token of context. So a sequence with 700 tokens of context adds
    25 microseconds to a step. Its 3 GFLOP per token add 20 more at half of the card's 312 TFLOP/s, and so does each
    token of a prompt. 128 sequences then give 12,000 tokens/s.
    """

    step_s: float = 5.4e-3  # a decode step without sequences
    sequence_s: float = 45e-6  # added to a decode step by each sequence
    prefill_s: float = 20e-6  # per prompt token; samples of one request share the prefill, as with a prefix cache
    load_s: float = 0.5  # loading new weights, during which nothing is sampled
    median_tokens: float = 700.0  # of a response
    sigma: float = 0.7  # standard deviation of the logarithm of a response's tokens
    straggler_share: float = 0.0  # share of samples that are stragglers
    straggler_factor: float = 4.0  # factor on the tokens of stragglers
    speed: float = 1.0  # modelled seconds per second of the clock

    def decode_s(self, num_running: int) -> float:
        """The modelled seconds of a decode step, which gives each running sequence a token."""
        return self.step_s + self.sequence_s * num_running

    def num_tokens(self, seed: int) -> int:
        """The length of the response with this seed, at least 1, before it is cut at max_tokens."""
        draw = random.Random(seed)
        factor = self.straggler_factor if draw.random() < self.straggler_share else 1.0
        return max(1, round(self.median_tokens * factor * draw.lognormvariate(0.0, self.sigma)))

    def to_json(self) -> str:
        """Format as JSON, which a simulated engine takes in place of a model path."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "LatencyModel":
        return cls(**json.loads(text))


_SLICE_S = 0.05  # modelled seconds of one step, unless the work ends earlier; new requests and weights wait for it
_SHORTEST_SLEEP_S = 0.05  # of the clock: each sleep costs some tenths of a millisecond of CPU time


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The work of an engine since its creation."""

    time_s: float  # time of the reading, on a clock that all processes of a machine share
    busy_s: float  # seconds of the clock in which the engine had something to sample
    slot_s: float  # seconds of sampling, summed over the running sequences
    num_samples: int
    num_tokens: int  # of the finished samples

    def since(self, earlier: "Usage") -> "Usage":
        """The work between two readings."""
        return Usage(
            time_s=self.time_s - earlier.time_s,
            busy_s=self.busy_s - earlier.busy_s,
            slot_s=self.slot_s - earlier.slot_s,
            num_samples=self.num_samples - earlier.num_samples,
            num_tokens=self.num_tokens - earlier.num_tokens,
        )


@dataclass(kw_only=True, eq=False)
class _OpenRequest:
    request: SampleRequest
    completions: list[Completion | None]  # in the order of the seeds
    num_open: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sample:
    owner: _OpenRequest
    position: int  # among the request's samples
    num_tokens: int
    truncated: bool
    prefill_tokens: int  # the prompt's tokens for the first of a request's samples, else 0


class _Running(NamedTuple):
    last_step: int  # the decode step that ends the sample; first, so that a heap has the next sample to end in front
    number: int
    first_step: int
    sample: _Sample


class SimulatedEngine:
    """A simulated engine (protocol `Engine`): seeds set the lengths, token ids and log-probs are 0, texts are seeds."""

    def __init__(self, model_path: str, *, config: EngineConfig, max_model_len: int, **_unused: Any) -> None:
        """Create an idle engine.

        Args:
            model_path: A latency model as JSON, from its `to_json`.
            config: `max_num_seqs` is the number of slots.
            max_model_len: Prompt and response tokens of the longest request.
            _unused: Other arguments of real engines.
        """
        self._model = LatencyModel.from_json(model_path)
        self._max_num_seqs = config.max_num_seqs
        self._max_model_len = max_model_len
        self._slice_s = max(_SLICE_S / self._model.speed, _SHORTEST_SLEEP_S)
        self._slowdown = 1.0
        self._waiting: deque[_Sample] = deque()
        self._running: list[_Running] = []  # a heap
        self._complete: list[_OpenRequest] = []
        self._num_unfinished = 0
        self._num_started = 0
        self._decode_steps = 0  # so far; a sample gets one token in each of its steps
        self._versions: list[tuple[int, int]] = [(0, -1)]  # (decode step, policy version from there on)
        self._overslept_s = 0.0
        self._busy_since: float | None = None
        self._busy_s = self._slot_s = 0.0
        self._num_samples = self._num_tokens = 0

    @property
    def policy_version(self) -> int:
        return self._versions[-1][1]

    @property
    def num_unfinished(self) -> int:
        return self._num_unfinished

    def slow_down(self, factor: float) -> None:
        """Multiply all durations by this factor."""
        self._slowdown = factor

    def usage(self) -> Usage:
        """Return the usage until now, including work under way."""
        self._count()
        return Usage(
            time_s=time.monotonic(),
            busy_s=self._busy_s,
            slot_s=self._slot_s,
            num_samples=self._num_samples,
            num_tokens=self._num_tokens,
        )

    def add(self, requests: Sequence[SampleRequest], sampling: SamplingParameters) -> None:
        """Queue requests; DataError if a request doesn't fit into the context."""
        check_lengths(requests, sampling=sampling, max_model_len=self._max_model_len)
        if requests and self._busy_since is None:
            self._busy_since = time.monotonic()
        for request in requests:
            self._num_unfinished += 1
            owner = _OpenRequest(request=request, completions=[None] * len(request.seeds), num_open=len(request.seeds))
            if not owner.num_open:
                self._complete.append(owner)
            for position, seed in enumerate(request.seeds):
                wanted = self._model.num_tokens(seed)
                sample = _Sample(
                    owner=owner,
                    position=position,
                    num_tokens=min(wanted, sampling.max_tokens),
                    truncated=wanted > sampling.max_tokens,
                    prefill_tokens=0 if position else len(request.prompt.token_ids),
                )
                self._waiting.append(sample)

    def step(self) -> list[tuple[SampleRequest, tuple[Completion, ...]]]:
        """Simulate many decode steps, with one sleep for their duration."""
        seconds = 0.0
        while (self._waiting or self._running) and seconds < self._slice_s:
            seconds += self._admit()
            seconds += self._decode(self._slice_s - seconds)
        self._sleep(seconds)
        complete, self._complete = self._complete, []
        self._num_unfinished -= len(complete)
        self._count()
        return [(owner.request, tuple(c for c in owner.completions if c is not None)) for owner in complete]

    def abort(self) -> None:
        """Drop every unfinished request."""
        self._waiting.clear()
        self._running, self._complete, self._num_unfinished = [], [], 0
        self._count()

    def reset(self) -> None:
        """Return to the state before the first load_weights."""
        self.abort()
        self._versions = [(0, -1)]

    def load_weights(self, policy_version: int, tensors: Iterable[tuple[str, Any]]) -> None:
        """Read the tensors and drop them; running samples continue under the new version."""
        for _ in tensors:
            pass
        self._sleep(self._clock_s(self._model.load_s))
        oldest = min((running.first_step for running in self._running), default=self._decode_steps)
        later = [step for step, _ in self._versions[1:]] + [self._decode_steps]
        kept = [version for version, end in zip(self._versions, later, strict=True) if end > oldest]
        self._versions = [*kept, (self._decode_steps, policy_version)]

    def close(self) -> None:
        """Do nothing: the engine holds no resources."""

    def _admit(self) -> float:
        """Fill the slots; return the seconds of the prefills."""
        num_free = min(self._max_num_seqs - len(self._running), len(self._waiting))
        prefill_tokens = 0
        for _ in range(num_free):
            sample = self._waiting.popleft()
            prefill_tokens += sample.prefill_tokens
            self._num_started += 1
            end = self._decode_steps + sample.num_tokens
            heapq.heappush(self._running, _Running(end, self._num_started, self._decode_steps, sample))
        return self._clock_s(prefill_tokens * self._model.prefill_s)

    def _decode(self, limit_s: float) -> float:
        """Run steps until a sample ends or `limit_s` has passed, but at least one; return their seconds."""
        step_s = self._clock_s(self._model.decode_s(len(self._running)))
        num_steps = min(self._running[0].last_step - self._decode_steps, max(1, int(limit_s / step_s)))
        self._decode_steps += num_steps
        seconds = num_steps * step_s
        self._slot_s += seconds * len(self._running)
        while self._running and self._running[0].last_step <= self._decode_steps:
            self._finish(heapq.heappop(self._running))
        return seconds

    def _finish(self, running: _Running) -> None:
        sample, owner = running.sample, running.sample.owner
        owner.completions[sample.position] = Completion(
            token_ids=np.zeros(sample.num_tokens, dtype=np.int32),
            logprobs=np.zeros(sample.num_tokens, dtype=np.float32),
            policy_versions=self._versions_by_token(running),
            finish_reason="length" if sample.truncated else "stop",
            text=str(owner.request.seeds[sample.position]),
        )
        owner.num_open -= 1
        if not owner.num_open:
            self._complete.append(owner)
        self._num_samples += 1
        self._num_tokens += sample.num_tokens

    def _versions_by_token(self, running: _Running) -> np.ndarray:
        starts = [max(step, running.first_step) for step, _ in self._versions] + [running.last_step]
        versions = np.array([version for _, version in self._versions], dtype=np.int32)
        return np.repeat(versions, np.maximum(np.diff(starts), 0))

    def _clock_s(self, modelled_s: float) -> float:
        return modelled_s * self._slowdown / self._model.speed

    def _sleep(self, seconds: float) -> None:
        """Sleep; the next sleep is shorter by the time overslept, so that timers of a busy machine don't add up."""
        start = time.monotonic()
        due = seconds - self._overslept_s
        if due > 0:
            time.sleep(due)
        self._overslept_s = max(0.0, time.monotonic() - start - due)

    def _count(self) -> None:
        """Add the time since the last count to the busy time."""
        if self._busy_since is None:
            return
        now = time.monotonic()
        self._busy_s += now - self._busy_since
        self._busy_since = now if self._num_unfinished else None
