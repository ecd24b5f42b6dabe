"""Meanings of a run's main metrics: the help texts of Ray's metrics, and the metrics of the Grafana dashboard."""

import re

from gvm_ray.phase_clock import PHASES

STEP_METRICS = {  # in every step's row
    "step": "index of the last completed step",
    "time_s": "seconds of the run so far",
    "reward/mean": "mean reward of the step's samples",
    "reward/accept_rate": "fraction of the step's samples whose reward reaches the accept threshold",
    "length/mean": "mean tokens of a response",
    "samples/truncated_fraction": "fraction of the samples that were cut at the token limit",
    "loss": "loss of the step's updates",
    "entropy": "mean entropy of a token, nats",
    "grad_norm": "gradient norm before clipping",
    "clip_fraction": "fraction of the tokens whose ratio was clipped",
    "learning_rate": "learning rate of the last update",
    "allocation/total": "samples of the step, over all its prompts",
    "allocation/min": "fewest samples of a prompt",
    "allocation/max": "most samples of a prompt",
    "allocation/zero": "prompts without a sample",
    "groups/with_signal": "prompts whose samples give a gradient",
    "groups/no_signal": "prompts whose samples give none",
    "groups/alone": "prompts with a single sample, which can't be compared with others",
    "groups/solved_fraction": "fraction of the step's prompts whose samples were all accepted",
    "groups/mixed_fraction": "fraction of the step's prompts of whose samples some were accepted",
    "groups/failed_fraction": "fraction of the step's prompts whose samples were all rejected",
    "groups/dropped_solved": "prompts that train nothing, with all samples accepted",
    "groups/dropped_failed": "prompts that train nothing, with all samples rejected",
    "groups/dropped_mixed": "prompts that train nothing, with some samples accepted",
    "groups/dropped_unscored": "prompts that train nothing because no sample has a reward",
    "samples/per_prompt": "samples drawn of a sampled prompt, mean",
    "tokens/useful": "tokens of the step's samples with a non-zero advantage",
    "tokens/useful_fraction": "tokens of samples with a non-zero advantage, as a fraction of the step's",
    "cost/generated_samples": "samples generated so far, pilots included",
    "cost/generated_tokens": "tokens generated so far, pilots included",
    "cost/charged_tokens": "tokens charged so far: generated ones, and the prefilled ones at their price",
    "cost/prompt_tokens": "tokens so far of the prompts sampled, once a request",
    "cost/trained_tokens": "tokens generated so far that were handed to the learner",
    "cost/optimizer_updates": "optimizer updates so far",
    "cost/refilled_samples": "samples so far that had no reward and were drawn again",
    "samples/unscored": "samples of the step without a reward",
    "num_skipped_updates": "updates of the step that were skipped because their gradient wasn't finite",
    "staleness/mean": "updates between sampling and training, mean",
    "staleness/max": "updates between sampling and training, largest",
    "queue/batches": "scored batches that wait for the learners",
    "logprob_difference/mean": "difference of a token's log-prob between learner and engine, mean, nats",
    "logprob_difference/max": "difference of a token's log-prob between learner and engine, largest, nats",
    "importance/effective_sample_size": "effective sample size under the importance weights, as a fraction",
    **{f"time/{phase}_s": f"seconds of the step during which {phase} ran" for phase in PHASES},
    "time/step_s": "seconds of the step",
    "time/idle_s": "seconds of the step during which nothing ran",
}
OPTIONAL_METRICS = {  # of runs that evaluate or sample pilots, and of steps with estimates of accept rates
    "eval/accuracy": "held-out accuracy in the last evaluation",
    "allocation/history_trials": "samples of a prompt itself that the prediction from its features is worth",
    "allocation/p_hat_mean": "mean estimated accept rate of the step's prompts",
    "allocation/brier": "mean squared error of the estimated accept rates of the step's prompts",
    "allocation/calibration_error": "expected calibration error of the estimated accept rates of the step's prompts",
    **{
        f"reward/accept_rate_hardest_{percent}": f"accept rate of the {percent} % of prompts estimated to be hardest"
        for percent in (10, 25, 50)
    },
    "cost/pilot_tokens": "tokens of pilots so far",
}
LIVE_METRICS = {  # only gauges: they change during a step
    "queue/samples_in_flight": "requested samples without a reward yet",
}
FAILURE_METRICS = {  # present after the first failure
    "faults/total": "failures of actors and nodes that the run recovered from",
    "reporting/failed_writes": "writes of steps so far that a sink didn't take",
    "rewards/malformed": "samples so far with reward 0 because the task's scorer couldn't read them",
    "rewards/unscored_timeout": "samples so far whose reward took too long",
    "rewards/unscored_memory": "samples so far whose reward needed too much memory",
    "rewards/unscored_error": "samples so far whose reward raised an error",
    "rewards/unscored_crash": "samples so far whose reward ended its process",
}
_MEANINGS = {**STEP_METRICS, **OPTIONAL_METRICS, **LIVE_METRICS, **FAILURE_METRICS}


def meaning(metric: str) -> str:
    """One line about a metric; its name for a metric of a single strategy."""
    return _MEANINGS.get(metric, f"{metric} of the last step")


def gauge_name(metric: str) -> str:
    """A metric's name in characters that Prometheus allows: ``reward/mean`` is ``gvm_ray_reward_mean``."""
    return "gvm_ray_" + re.sub(r"[^a-zA-Z0-9_]", "_", metric)


def exported_name(metric: str) -> str:
    """A metric's name in Prometheus, with Ray's prefix: ``reward/mean`` is ``ray_gvm_ray_reward_mean``."""
    return f"ray_{gauge_name(metric)}"
