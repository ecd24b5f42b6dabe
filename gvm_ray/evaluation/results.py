"""avg@k, pass@k and maj@k of scored groups, with bootstrap intervals."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gvm_ray.exceptions import SystemFailure
from gvm_ray.maths import final_answer as final
from gvm_ray.types import BoolArray, Float64Array, RolloutGroup


def final_answer(text: str, *, truncated: bool) -> str | None:
    r"""The response's final answer, boxed or not; None, which has no vote, if it gives none.

    In a truncated response only a box counts: its last number is where it was cut.
    """
    answer = final.final_answer(text)
    return None if answer is None or (truncated and not answer.boxed) else answer.text


def average_at_k(correct: Sequence[ArrayLike]) -> Float64Array:
    """avg@k: the share of each prompt's samples that are correct, [P].

    Args:
        correct: For each prompt a sequence of 0/1 or booleans, one per sample, at least one. May be ragged.
    """
    return np.array([np.mean(np.asarray(samples, dtype=np.float64)) for samples in correct], dtype=np.float64)


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: int) -> Float64Array:
    """pass@k: unbiased estimate of the chance that at least one of k samples is correct (arXiv 2107.03374, equation 1).

    1 - C(n - c, k) / C(n, k), computed as a product of k ratios, so that nothing overflows. Elementwise, with
    broadcasting.

    Raises:
        ValueError: k isn't in [1, n], or c isn't in [0, n], for some element.
    """
    n, c = np.broadcast_arrays(np.asarray(num_samples, dtype=np.int64), np.asarray(num_correct, dtype=np.int64))
    if k < 1 or np.any(n < k):
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} sample(s) of each prompt; one has {n.min()}")
    if np.any((c < 0) | (c > n)):
        raise ValueError("num_correct must lie between 0 and num_samples")
    # C(n - c, k) / C(n, k) = prod over i < k of (n - c - i) / (n - i); a factor is 0 once n - c < k.
    drawn = np.arange(k)
    factors = np.maximum(n[..., None] - c[..., None] - drawn, 0) / (n[..., None] - drawn)
    return 1.0 - np.prod(factors, axis=-1)


def majority_at_k(answers: Sequence[Sequence[str | None]], correct: Sequence[ArrayLike]) -> Float64Array:
    """maj@k: the correctness of each prompt's most frequent answer, [P] in [0, 1].

    Samples vote by the text of their answer, so equal answers need the same spelling (`rewards.votes`). None is no
    vote; a prompt without votes scores 0. A tie scores its expectation under a fair draw: two answers of equal count,
    one of them correct, score 1/2. If samples with the same text differ in correctness, the answer scores their mean.

    Raises:
        ValueError: the shapes of `answers` and `correct` differ.
    """
    return np.array([_majority(a, c) for a, c in zip(answers, correct, strict=True)], dtype=np.float64)


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean, by resampling prompts with replacement (Efron, 1979).

    Args:
        values: [P] one number per prompt; at least one.
        confidence: The probability that such an interval covers the mean.
        num_resamples: The number of resamples.
        seed: Of the resampling; equal seeds give equal intervals.

    Raises:
        ValueError: there are no values, or confidence isn't in (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise ValueError("a bootstrap interval needs at least one value")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must be between 0 and 1; write e.g. 0.95")
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _majority(answers: Sequence[str | None], correct: ArrayLike) -> float:
    votes: dict[str, list[float]] = {}
    for answer, is_correct in zip(answers, np.asarray(correct, dtype=np.float64), strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(float(is_correct))
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    return float(np.mean([np.mean(group) for group in votes.values() if len(group) == most]))


Answers = Sequence[Sequence[str | None]]  # [P][k] text of each sample's answer, None if it has none


@dataclass(frozen=True, kw_only=True)
class PromptMean:
    """A mean over prompts and its bootstrap interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Float64Array, *, confidence: float, seed: int) -> "PromptMean":
        """The estimate from values [P], one per prompt."""
        low, high = bootstrap_interval(values, confidence=confidence, seed=seed)
        return cls(mean=float(values.mean()), low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Accuracy of one model on one set of prompts."""

    num_prompts: int
    num_samples: int  # k, per prompt
    num_unscored: int  # samples without a reward; they count neither as right nor as wrong
    confidence: float  # of the intervals
    metrics: dict[str, PromptMean]  # avg@k, pass@1, pass@2, pass@4 ... pass@k, and maj@k if answers are known

    @classmethod
    def of(
        cls,
        groups: Sequence[RolloutGroup],
        *,
        merge_votes: Callable[[Answers], Answers] = lambda answers: answers,
        accept_threshold: float = 0.5,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> "EvaluationResult":
        """The result of scored groups; see `of_rewards`.

        A prompt's samples may be in several groups, e.g. if several generators shared them.

        Args:
            groups: Scored groups.
            merge_votes: Gives equal answers of a prompt the same spelling (`rewards.votes`); default: no merging.
            accept_threshold: See `of_rewards`.
            confidence: See `of_rewards`.
            seed: See `of_rewards`.
        """
        rewards: dict[str, list[float]] = {}
        answers: dict[str, list[str | None]] = {}
        for group in groups:
            assert group.rewards is not None, "groups are scored before they are evaluated"
            rewards.setdefault(group.prompt.prompt_id, []).extend(group.rewards)
            answers.setdefault(group.prompt.prompt_id, []).extend(
                final_answer(group.prompt.opened_tag + text, truncated=bool(cut))
                for text, cut in zip(group.texts, group.truncated, strict=True)
            )
        return cls.of_rewards(
            list(rewards.values()),
            answers=merge_votes(list(answers.values())),
            accept_threshold=accept_threshold,
            confidence=confidence,
            seed=seed,
        )

    @classmethod
    def of_rewards(
        cls,
        rewards: Sequence[ArrayLike],
        *,
        answers: Answers | None = None,
        accept_threshold: float = 0.5,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> "EvaluationResult":
        """The result for P prompts with k samples each.

        Unscored samples are left out. pass@j is over the prompts with at least j scored samples, and is left out if
        there are none.

        Args:
            rewards: [P][k]; NaN is unscored.
            answers: [P][k] text of each sample's answer, None if it has none; without `answers` there is no maj@k.
            accept_threshold: A sample is correct if its reward is at least this.
            confidence: Of the intervals, over prompts.
            seed: Of the bootstrap.

        Raises:
            ValueError: there are no prompts or samples, or prompts differ in their number of samples.
            SystemFailure: no sample was scored.
        """
        table = [np.asarray(samples, dtype=np.float64) for samples in rewards]
        sizes = sorted({len(samples) for samples in table})
        if len(sizes) != 1 or sizes[0] == 0:
            raise ValueError(f"an evaluation needs the same number of samples, 1 or more, of each prompt; got {sizes}")
        k = sizes[0]
        scored = [np.isfinite(samples) for samples in table]
        kept = [index for index, mask in enumerate(scored) if mask.any()]
        if not kept:
            raise SystemFailure(f"none of the {len(table) * k} samples was scored; the reward actors' log says why")
        correct = [table[index][scored[index]] >= accept_threshold for index in kept]
        values = {f"avg@{k}": average_at_k(correct), **_pass_values(correct, k)}
        if answers is not None:
            votes = [[a for a, known in zip(answers[index], scored[index], strict=True) if known] for index in kept]
            values[f"maj@{k}"] = majority_at_k(votes, correct)
        return cls(
            num_prompts=len(table),
            num_samples=k,
            num_unscored=sum(int((~mask).sum()) for mask in scored),
            confidence=confidence,
            metrics={name: PromptMean.of(v, confidence=confidence, seed=seed) for name, v in values.items()},
        )

    @property
    def accuracy(self) -> float:
        """avg@k: the share of all samples that are correct."""
        return self.metrics[f"avg@{self.num_samples}"].mean

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def table(self) -> str:
        """A Markdown table, in percent."""
        lines = [
            f"| {self.num_prompts} prompts | % | {100 * self.confidence:g} % interval |",
            "|---|---|---|",
            *(
                f"| {name} | {100 * e.mean:.2f} | {100 * e.low:.2f} to {100 * e.high:.2f} |"
                for name, e in self.metrics.items()
            ),
        ]
        if self.num_unscored:
            lines.append(
                f"| unscored samples | {100 * self.num_unscored / (self.num_prompts * self.num_samples):.2f} | |"
            )
        return "\n".join(lines)


def _pass_values(correct: Sequence[BoolArray], k: int) -> dict[str, Float64Array]:
    """pass@1, pass@2, pass@4 ... and pass@k, each over the prompts with enough scored samples."""
    num_samples = np.array([len(samples) for samples in correct])
    num_correct = np.array([samples.sum() for samples in correct])
    sizes = [2**exponent for exponent in range(k.bit_length()) if 2**exponent < k] + [k]
    return {
        f"pass@{size}": pass_at_k(num_samples[enough], num_correct[enough], size)
        for size in sizes
        if (enough := num_samples >= size).any()
    }
