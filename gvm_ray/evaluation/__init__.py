"""Evaluation over several samples of each prompt: avg@k, pass@k and maj@k with bootstrap intervals."""

from gvm_ray.evaluation.results import (
    EvaluationResult,
    PromptMean,
    average_at_k,
    bootstrap_interval,
    final_answer,
    majority_at_k,
    pass_at_k,
)

__all__ = [
    "EvaluationResult",
    "PromptMean",
    "average_at_k",
    "bootstrap_interval",
    "final_answer",
    "majority_at_k",
    "pass_at_k",
]
