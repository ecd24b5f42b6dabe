"""Results on benchmarks: accuracies, averages over benchmarks, and differences between models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.benchmarks.samples import Sample
from gvm_ray.evaluation import EvaluationResult
from gvm_ray.maths.bootstrap import Estimate, estimate_mean
from gvm_ray.rewards.votes import merged_votes

# The averages of the paper (arXiv 2505.02391): each benchmark has the same weight, whatever its size.
_AVERAGES = {
    "3 average": ("math500", "minerva_math", "olympiad_bench"),
    "5 average": ("math500", "minerva_math", "olympiad_bench", "aime24", "amc23"),
}


@dataclass(frozen=True, kw_only=True)
class PromptSamples:
    """A prompt's finished samples, with its subject and level."""

    prompt_id: str
    subject: str | None
    level: str | None
    samples: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """The result of one model on one benchmark."""

    overall: EvaluationResult
    subjects: dict[str, EvaluationResult]  # empty if the file names none
    levels: dict[str, EvaluationResult]
    accuracies: dict[str, float]  # prompt_id -> share of correct ones among its scored samples, if it has any
    num_too_long: int  # prompts left out because they have more tokens than prompts.max_tokens
    mean_tokens: float  # per response
    truncated: float  # share of truncated samples
    unanswered: float  # share of samples without an answer

    @classmethod
    def of(
        cls, prompts: Sequence[PromptSamples], *, accept_threshold: float, num_too_long: int = 0, seed: int = 0
    ) -> "BenchmarkResult":
        """The result from k samples of each prompt; subjects and levels without a scored sample are left out.

        Raises:
            SystemFailure: no sample was scored.
        """

        merged = merged_votes([[sample.answer for sample in prompt.samples] for prompt in prompts])
        votes = {prompt.prompt_id: of_prompt for prompt, of_prompt in zip(prompts, merged, strict=True)}

        def result(part: Sequence[PromptSamples]) -> EvaluationResult:
            return EvaluationResult.of_rewards(
                [_rewards(prompt) for prompt in part],
                answers=[votes[prompt.prompt_id] for prompt in part],
                accept_threshold=accept_threshold,
                seed=seed,
            )

        def results(group: Callable[[PromptSamples], str | None]) -> dict[str, EvaluationResult]:
            names = sorted({name for prompt in scored if (name := group(prompt)) is not None})
            return {name: result([prompt for prompt in scored if group(prompt) == name]) for name in names}

        scored = [prompt for prompt in prompts if np.isfinite(_rewards(prompt)).any()]
        samples = [sample for prompt in prompts for sample in prompt.samples]
        return cls(
            overall=result(prompts),
            subjects=results(lambda prompt: prompt.subject),
            levels=results(lambda prompt: prompt.level),
            accuracies={prompt.prompt_id: _accuracy(prompt, accept_threshold) for prompt in scored},
            num_too_long=num_too_long,
            mean_tokens=float(np.mean([sample.num_tokens for sample in samples])),
            truncated=float(np.mean([sample.finish_reason == "length" for sample in samples])),
            unanswered=float(np.mean([sample.answer is None for sample in samples])),
        )


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """The results of one model on all benchmarks."""

    name: str
    model: str
    benchmarks: dict[str, BenchmarkResult]

    def averages(self) -> dict[str, Estimate]:
        """Means of avg@k over benchmarks; the intervals resample prompts within each benchmark (Efron, 1979)."""
        return _over_benchmarks({name: each.accuracies for name, each in self.benchmarks.items()})

    def minus(self, other: "ModelResult") -> dict[str, Estimate]:
        """avg@k minus another model's, by benchmark and on average, paired over prompts.

        Prompts for which one of the models has no scored sample are left out.
        """
        differences = {
            name: {
                prompt_id: accuracy - theirs
                for prompt_id, accuracy in result.accuracies.items()
                if (theirs := other.benchmarks[name].accuracies.get(prompt_id)) is not None
            }
            for name, result in self.benchmarks.items()
        }
        differences = {name: values for name, values in differences.items() if values}
        single = {name: estimate_mean({name: _numbered(values)}) for name, values in differences.items()}
        return single | _over_benchmarks(differences)


def _over_benchmarks(values: Mapping[str, Mapping[str, float]]) -> dict[str, Estimate]:
    """Estimates of the named averages that these benchmarks allow, and of the average of all benchmarks."""
    named = {name: parts for name, parts in _AVERAGES.items() if set(parts) <= values.keys()}
    if len(values) > 1 and set(values) not in map(set, named.values()):
        named[f"average of {len(values)}"] = tuple(values)
    return {name: estimate_mean({part: _numbered(values[part]) for part in parts}) for name, parts in named.items()}


def _numbered(values: Mapping[str, float]) -> dict[int, float]:
    return dict(enumerate(values.values()))


def _rewards(prompt: PromptSamples) -> list[float]:
    return [float("nan") if sample.reward is None else sample.reward for sample in prompt.samples]


def _accuracy(prompt: PromptSamples, accept_threshold: float) -> float:
    rewards = np.array(_rewards(prompt))
    return float((rewards[np.isfinite(rewards)] >= accept_threshold).mean())
