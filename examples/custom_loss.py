"""A token loss of your own: a function from log-probs to a number per token, named in the config.

This one is CISPO's (arXiv 2506.13585): the importance ratio is cut and taken as a constant, so that a token
beyond the cut keeps its gradient, where PPO's clip would take it away:

    cd examples && gvm-ray train ../configs/grpo.toml --set name=custom-loss \\
        --set algorithm.loss.path=custom_loss:cispo --set algorithm.loss.parameters.high=2.0
"""

from torch import Tensor


def cispo(logprobs: Tensor, *, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, high: float = 1.28) -> Tensor:
    """-min(ratio, high) A ln pi for every token [B, T], without a gradient through the ratio."""
    ratio = (logprobs - old_logprobs).detach().exp()
    return -ratio.clamp(max=high) * advantages * logprobs
