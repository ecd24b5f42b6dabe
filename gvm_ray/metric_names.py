"""Names of a run's metrics with units and meanings: for docs/metrics.md, Ray's help texts and the Grafana dashboard."""

import re
from typing import NamedTuple

from gvm_ray.phase_clock import PHASES


class Metric(NamedTuple):
    """A number of a step."""

    unit: str  # empty for numbers without one
    meaning: str


STEP_METRICS = {  # in every step's row
    "step": Metric("", "index of the last completed step"),
    "time_s": Metric("s", "time of the run so far"),
    "reward/mean": Metric("", "mean reward of the step's samples"),
    "reward/accept_rate": Metric("fraction", "share of the step's samples whose reward reaches the accept threshold"),
    "length/mean": Metric("tokens", "mean length of a response"),
    "samples/truncated_fraction": Metric("fraction", "share of the samples that were cut at the token limit"),
    "loss": Metric("", "loss of the step's updates"),
    "entropy": Metric("nats", "mean entropy of a token"),
    "grad_norm": Metric("", "gradient norm before clipping"),
    "clip_fraction": Metric("fraction", "share of the tokens whose ratio was clipped"),
    "learning_rate": Metric("", "learning rate of the last update"),
    "allocation/total": Metric("samples", "samples of the step, over all its prompts"),
    "allocation/min": Metric("samples", "fewest samples of a prompt"),
    "allocation/max": Metric("samples", "most samples of a prompt"),
    "allocation/zero": Metric("prompts", "prompts without a sample"),
    "groups/with_signal": Metric("prompts", "prompts whose samples give a gradient"),
    "groups/no_signal": Metric("prompts", "prompts whose samples give none"),
    "groups/alone": Metric("prompts", "prompts with a single sample, which can't be compared with others"),
    "groups/solved_fraction": Metric("fraction", "share of the step's prompts whose samples were all accepted"),
    "groups/mixed_fraction": Metric("fraction", "share of the step's prompts of whose samples some were accepted"),
    "groups/failed_fraction": Metric("fraction", "share of the step's prompts whose samples were all rejected"),
    "groups/dropped_solved": Metric("prompts", "prompts that train nothing, with all samples accepted"),
    "groups/dropped_failed": Metric("prompts", "prompts that train nothing, with all samples rejected"),
    "groups/dropped_mixed": Metric("prompts", "prompts that train nothing, with some samples accepted"),
    "groups/dropped_unscored": Metric("prompts", "prompts that train nothing because no sample has a reward"),
    "samples/per_prompt": Metric("samples", "samples drawn of a sampled prompt, mean"),
    "tokens/useful": Metric("tokens", "tokens of the step's samples with a non-zero advantage"),
    "tokens/useful_fraction": Metric(
        "fraction", "share of the step's tokens that are in samples with a non-zero advantage"
    ),
    "cost/generated_samples": Metric("samples", "samples generated so far, pilots included"),
    "cost/generated_tokens": Metric("tokens", "tokens generated so far, pilots included"),
    "cost/charged_tokens": Metric(
        "tokens", "tokens charged so far: generated ones, and the prefilled ones at their price"
    ),
    "cost/prompt_tokens": Metric("tokens", "tokens so far of the prompts sampled, once a request"),
    "cost/trained_tokens": Metric("tokens", "tokens generated so far that were handed to the learner"),
    "cost/optimizer_updates": Metric("updates", "optimizer updates so far"),
    "cost/refilled_samples": Metric("samples", "samples so far that had no reward and were drawn again"),
    "samples/unscored": Metric("samples", "samples of the step without a reward"),
    "num_skipped_updates": Metric(
        "updates", "updates of the step that were skipped because their gradient wasn't finite"
    ),
    "staleness/mean": Metric("updates", "updates between sampling and training, mean"),
    "staleness/max": Metric("updates", "updates between sampling and training, largest"),
    "queue/batches": Metric("batches", "scored batches that wait for the learners"),
    "logprob_difference/mean": Metric("nats", "difference of a token's log-prob between learner and engine, mean"),
    "logprob_difference/max": Metric("nats", "difference of a token's log-prob between learner and engine, largest"),
    "importance/effective_sample_size": Metric(
        "fraction", "effective sample size under the importance weights, as a fraction of the tokens"
    ),
    **{f"time/{phase}_s": Metric("s", f"part of the step during which {phase} ran") for phase in PHASES},
    "time/step_s": Metric("s", "time of the step"),
    "time/idle_s": Metric("s", "part of the step during which nothing ran"),
}
OPTIONAL_METRICS = {  # of runs that evaluate or sample pilots, and of steps with estimates of accept rates
    "eval/accuracy": Metric("fraction", "held-out accuracy in the last evaluation"),
    "allocation/p_hat_mean": Metric("fraction", "mean estimated accept rate of the step's prompts"),
    "allocation/brier": Metric("", "mean squared error of the estimated accept rates of the step's prompts"),
    "allocation/calibration_error": Metric(
        "fraction", "expected calibration error of the estimated accept rates of the step's prompts"
    ),
    **{
        f"reward/accept_rate_hardest_{percent}": Metric(
            "fraction", f"accept rate of the {percent} % of prompts estimated to be hardest"
        )
        for percent in (10, 25, 50)
    },
    "cost/pilot_tokens": Metric("tokens", "tokens of pilots so far"),
}
LIVE_METRICS = {  # only gauges: they change during a step
    "queue/samples_in_flight": Metric("samples", "requested samples without a reward yet"),
}
FAILURE_METRICS = {  # present after the first failure
    "faults/total": Metric("failures", "failures of actors and nodes that the run recovered from"),
    "reporting/failed_writes": Metric("writes", "writes of steps so far that a sink didn't take"),
    "rewards/malformed": Metric("samples", "samples so far with reward 0 because the task's scorer couldn't read them"),
    "rewards/unscored_timeout": Metric("samples", "samples so far whose reward took too long"),
    "rewards/unscored_memory": Metric("samples", "samples so far whose reward needed too much memory"),
    "rewards/unscored_error": Metric("samples", "samples so far whose reward raised an error"),
    "rewards/unscored_crash": Metric("samples", "samples so far whose reward ended its process"),
}
STRATEGY_METRICS = {  # of some strategies and settings, or of little interest by themselves
    "reward/std": Metric("", "standard deviation of the rewards of the step's samples"),
    "length/max": Metric("tokens", "longest response"),
    "ratio": Metric("", "mean probability ratio of a token, of the updated over the old policy"),
    "allocation/history_trials": Metric(
        "samples", "samples of a prompt itself that the prediction from its features is worth"
    ),
    "advantage/mean_abs": Metric("", "mean absolute advantage of a sample"),
    "samples/kept": Metric("samples", "samples that are trained on"),
    "samples/not_kept": Metric("samples", "scored samples that the allocator leaves out of the batch"),
    "num_updates": Metric("updates", "optimizer updates of the step"),
    "kl": Metric("nats", "mean KL divergence of a token from the starting policy, with `algorithm.kl`"),
    "importance/mean": Metric("", "probability ratio of learner and engine before it is bounded, mean; near 1"),
    "importance/max": Metric("", "probability ratio of learner and engine before it is bounded, largest"),
    "importance/clipped_fraction": Metric("fraction", "share of the tokens whose importance weight was bounded"),
    "turns/mean": Metric("turns", "turns of the policy in an episode, mean, with an environment that answers"),
    "turns/max": Metric("turns", "turns of the policy in an episode, most"),
    "cost/prefill_tokens": Metric("tokens", "tokens so far that were read for the allocator's hidden states alone"),
    "eval/length_mean": Metric("tokens", "mean length of a response in the last evaluation"),
    "eval/truncated_fraction": Metric("fraction", "share of the evaluation's samples that were cut at the token limit"),
    "eval/unscored": Metric("samples", "samples of the evaluation without a reward"),
    "eval/policy_version": Metric("updates", "version of the policy that was evaluated"),
    "allocation/dropped": Metric("prompts", "prompts whose samples the allocator drops"),
    "allocation/prompts": Metric("prompts", "prompts that were chosen from the candidates (gvm_pool, spo)"),
    "allocation/gradient_norm_mean": Metric(
        "", "mean gradient norm of the prompts' accepted samples (gvm, predictive)"
    ),
    "allocation/norm_rank_correlation": Metric("", "rank correlation of predicted and measured norms (predictive)"),
    "allocation/undo_weight_mean": Metric("", "mean weight that undoes the selection (gvm_pool, undo_selection)"),
    "allocation/undo_weight_max": Metric("", "largest weight that undoes the selection (gvm_pool, undo_selection)"),
    "allocation/undo_effective_prompts": Metric(
        "prompts", "effective number of prompts under these weights (gvm_pool)"
    ),
    "allocation/p_hat_std": Metric("fraction", "standard deviation of the predicted accept rates (vip)"),
    "allocation/measured": Metric(
        "prompts", "prompts whose accept rate was measured in this step (spo, offline_filter)"
    ),
    "allocation/inside": Metric("prompts", "candidates with an accept rate inside the bounds (offline_filter)"),
    "allocation/value_mean": Metric("", "mean tracked value of the drawn prompts (spo)"),
    "allocation/sigma_mean": Metric("", "mean standard deviation of a sample's gradient (cures)"),
    "allocation/rounds": Metric("rounds", "rounds of sampling in the step (dapo)"),
    "allocation/unsatisfied": Metric("prompts", "prompts that lack samples of a class (reinforce_ada_seq)"),
    "allocation/passed": Metric("prompts", "prompts that passed the screening (speed)"),
    "allocation/skipped": Metric("prompts", "candidates that were skipped (greso)"),
    "allocation/easy_probability": Metric("fraction", "probability of trying a solved prompt again (greso)"),
    "allocation/hard_probability": Metric("fraction", "probability of trying a failed prompt again (greso)"),
    "allocation/mixed_probability": Metric("fraction", "mean probability of mixed rewards of the chosen prompts (dps)"),
    "allocation/prompt_entropy": Metric("nats", "mean entropy of the chosen prompts' tokens (hive)"),
    "allocation/baseline_square_error": Metric("", "mean squared error of the baselines (poise)"),
    "allocation/shrinkage_mean": Metric("fraction", "mean weight of the run's mean in a group's baseline (ebpo)"),
}
METRICS = {**STEP_METRICS, **OPTIONAL_METRICS, **STRATEGY_METRICS, **LIVE_METRICS, **FAILURE_METRICS}


def meaning(metric: str) -> str:
    """One line about a metric with its unit, if it has one; its name for a metric of the user's own code."""
    known = METRICS.get(metric)
    if known is None:
        return f"{metric} of the last step"
    says_unit = not known.unit or known.unit in known.meaning.split()
    return known.meaning if says_unit else f"{known.meaning}, {known.unit}"


def gauge_name(metric: str) -> str:
    """A metric's name in characters that Prometheus allows: ``reward/mean`` is ``gvm_ray_reward_mean``."""
    return "gvm_ray_" + re.sub(r"[^a-zA-Z0-9_]", "_", metric)


def exported_name(metric: str) -> str:
    """A metric's name in Prometheus, with Ray's prefix: ``reward/mean`` is ``ray_gvm_ray_reward_mean``."""
    return f"ray_{gauge_name(metric)}"
