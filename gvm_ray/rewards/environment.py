"""Reward of the environments of other libraries: their own score of an episode."""

from gvm_ray.config.environments import HostedEnvironmentSettings
from gvm_ray.tasks.hosted import Score, check_installed, hosted_environment
from gvm_ray.types import Completion, Prompt


class EnvironmentReward:
    """The score of the environment that made the prompt.

    Raises:
        ConfigError: the library is not installed.
    """

    def __init__(self, environment: HostedEnvironmentSettings) -> None:
        check_installed(environment)
        self._environment = environment
        # Cached, because the reward and its terms are requested one after the other: each response is scored once.
        self._last: tuple[Prompt, Completion, Score] | None = None

    def __call__(self, prompt: Prompt, completion: Completion) -> float:
        """The score.

        Raises:
            Exception: the environment failed; the sample is then unscored.
        """
        return self._scored(prompt, completion).reward

    def terms(self, prompt: Prompt, completion: Completion) -> dict[str, float]:
        """The environment's own metrics by name."""
        return dict(self._scored(prompt, completion).metrics)

    def _scored(self, prompt: Prompt, completion: Completion) -> Score:
        if self._last is None or self._last[0] is not prompt or self._last[1] is not completion:
            environment = hosted_environment(self._environment)
            score = environment.score(prompt, completion.policy_turns, cut=completion.finish_reason == "length")
            self._last = (prompt, completion, score)
        return self._last[2]
