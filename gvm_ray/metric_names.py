"""What a run's main metrics mean: the help texts of Ray's metrics, and what the Grafana dashboard may show."""

import re

from gvm_ray.phase_clock import PHASES

STEP_METRICS = {  # in every step's row
    "step": "index of the last completed step",
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
    "groups/alone": "prompts with a single sample, which no other is there to be compared with",
    "cost/generated_samples": "samples generated so far, pilots included",
    "cost/generated_tokens": "tokens generated so far, pilots included",
    "cost/charged_tokens": "tokens charged so far: generated ones, and the prefilled ones at their price",
    "cost/optimizer_updates": "optimizer updates so far",
    "cost/refilled_samples": "samples so far that had no reward and were drawn again",
    "samples/unscored": "samples of the step without a reward",
    "num_skipped_updates": "updates of the step that were left out, their gradient not being finite",
    "staleness/mean": "updates between sampling and training, mean",
    "staleness/max": "updates between sampling and training, largest",
    "queue/batches": "scored batches that wait for the learners",
    "logprob_difference/mean": "difference of a token's log-prob between learner and engine, mean, nats",
    "logprob_difference/max": "difference of a token's log-prob between learner and engine, largest, nats",
    "importance/effective_sample_size": "effective sample size under the importance weights, as a fraction",
    **{f"time/{phase}_s": f"seconds of the step with {phase} under way" for phase in PHASES},
    "time/step_s": "seconds of the step",
    "time/idle_s": "seconds of the step with nothing under way",
}
OPTIONAL_METRICS = {  # of runs that evaluate, or whose allocator estimates or samples pilots
    "eval/accuracy": "held-out accuracy, of the last evaluation",
    "allocation/p_hat_mean": "mean estimated accept rate of the step's prompts",
    "cost/pilot_tokens": "tokens of pilots so far",
}
LIVE_METRICS = {  # gauges alone: they change while a step is under way
    "queue/samples_in_flight": "samples that were asked for and have no reward yet",
}
FAILURE_METRICS = {  # once there was one
    "faults/total": "failures of actors and nodes that the run recovered from",
    "rewards/malformed": "samples so far that are worth 0 because the task's scorer couldn't read them",
    "rewards/unscored_timeout": "samples so far whose reward took too long",
    "rewards/unscored_memory": "samples so far whose reward needed too much memory",
    "rewards/unscored_error": "samples so far whose reward raised an error",
    "rewards/unscored_crash": "samples so far whose reward ended its process",
}
_MEANINGS = {**STEP_METRICS, **OPTIONAL_METRICS, **LIVE_METRICS, **FAILURE_METRICS}


def meaning(metric: str) -> str:
    """One line about a metric; of those that only one strategy has, its name."""
    return _MEANINGS.get(metric, f"{metric} of the last step")


def gauge_name(metric: str) -> str:
    """A metric's name in the letters that Prometheus allows: ``reward/mean`` is ``gvm_ray_reward_mean``."""
    return "gvm_ray_" + re.sub(r"[^a-zA-Z0-9_]", "_", metric)


def exported_name(metric: str) -> str:
    """As Prometheus sees it, for Ray puts its own name first: ``reward/mean`` is ``ray_gvm_ray_reward_mean``."""
    return f"ray_{gauge_name(metric)}"
