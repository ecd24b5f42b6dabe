"""How long a model takes and how long its responses are: all that a simulated engine knows of it."""

import json
import random
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """Continuous batching by three constants, and log-normal response lengths.

    The defaults are an assumption: a model of 1.5 billion parameters in bfloat16 on one A100. Qwen's published speed of
    Qwen2.5-1.5B in vLLM 0.6.3 is 183 tokens/s at batch size 1, which gives `step_s`, and 152 tokens/s behind 30,720
    tokens of context, which is 36 ns a step for each token attended to. A sequence with 700 tokens behind it therefore
    adds 25 microseconds to a step; its 3 GFLOP a token add 20 more at half of the card's 312 TFLOP/s, as does each
    token of a prompt. 128 sequences then give 12,000 tokens/s.
    """

    step_s: float = 5.4e-3  # a decode step of no sequence
    sequence_s: float = 45e-6  # each sequence adds to a decode step
    prefill_s: float = 20e-6  # a token of a prompt; samples of one request share it, as with a prefix cache
    load_s: float = 0.5  # new weights, during which nothing is sampled
    median_tokens: float = 700.0  # of a response
    sigma: float = 0.7  # of the logarithm of a response's tokens
    straggler_share: float = 0.0  # of the samples
    straggler_factor: float = 4.0  # times the tokens that they would have had
    speed: float = 1.0  # modelled seconds in one second of the clock

    def decode_s(self, num_running: int) -> float:
        """Modelled seconds of a decode step, which gives each running sequence a token."""
        return self.step_s + self.sequence_s * num_running

    def num_tokens(self, seed: int) -> int:
        """The length of the response with this seed, at least 1, before it is cut."""
        draw = random.Random(seed)
        factor = self.straggler_factor if draw.random() < self.straggler_share else 1.0
        return max(1, round(self.median_tokens * factor * draw.lognormvariate(0.0, self.sigma)))

    def to_json(self) -> str:
        """What a simulated engine takes in place of a model's path."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "LatencyModel":
        return cls(**json.loads(text))
