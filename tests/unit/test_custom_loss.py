"""A token loss that the config names by its path: tried before a run, and in place of the clipped ratio in it."""

import pickle
import sys

import pytest
import torch

from gvm_ray.algorithms import token_loss
from gvm_ray.config.strategy import GRPOConfig, ImportanceConfig, KLConfig, LossConfig, RaftConfig
from gvm_ray.exceptions import ConfigError

LOSSES = """
def likelihood(logprobs, *, old_logprobs, advantages, mask, scale=1.0):
    return -scale * advantages * logprobs * mask.any()

def mean(logprobs, **inputs): return logprobs.mean()

def number(logprobs, **inputs): return 1.0

def constant(logprobs, **inputs): return logprobs.detach()

def broken(logprobs, **inputs): raise ZeroDivisionError("oh")
"""


@pytest.fixture(autouse=True)
def _losses(tmp_path, monkeypatch):
    """The module `own_loss`, in a folder where Python looks."""
    (tmp_path / "own_loss.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_loss", raising=False)


def own(name, **parameters):
    return LossConfig(path=f"own_loss:{name}", parameters=parameters)


def called(loss, logprobs, **inputs):
    frozen = logprobs.detach()
    arguments = {
        "old_logprobs": frozen,
        "engine_logprobs": frozen,
        "ref_logprobs": None,
        "entropy": None,
        "advantages": torch.tensor([[1.0], [-2.0]]),
        "mask": torch.ones(2, 2, dtype=torch.bool),
    }
    return loss(logprobs=logprobs, **(arguments | inputs))


@pytest.mark.parametrize("kind", [GRPOConfig, RaftConfig])
def test_it_takes_the_place_of_ratio_and_clip(kind):
    loss = pickle.loads(pickle.dumps(token_loss(kind(loss=own("likelihood", scale=3.0)))))
    logprobs = torch.tensor([[-0.5, -1.0], [-2.0, -0.1]], requires_grad=True)
    far = logprobs.detach() - 5.0  # where the clip would leave no gradient
    losses, diagnostics = called(loss, logprobs, old_logprobs=far, engine_logprobs=far)
    losses.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-3.0, -3.0], [6.0, 6.0]]))
    assert diagnostics["ratio"].shape == (2, 2)
    assert "clip_fraction" not in diagnostics


def test_importance_and_kl_are_still_applied():
    config = GRPOConfig(loss=own("likelihood"), kl=KLConfig(coefficient=0.5, kind="k1"), importance=ImportanceConfig())
    logprobs = torch.full((2, 2), -1.0)
    engine = torch.full((2, 2), -1.0 - torch.tensor(1.5).log())
    losses, diagnostics = called(token_loss(config), logprobs, engine_logprobs=engine, ref_logprobs=logprobs - 1.0)
    torch.testing.assert_close(losses, torch.tensor([[1.5, 1.5], [-3.0, -3.0]]) + 0.5)
    assert {"importance/mean", "kl"} <= diagnostics.keys()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (own("nothing"), "algorithm.loss.path: 'own_loss:nothing' can't be imported"),
        (own("mean"), r"returned \[\]; return a tensor with the shape of logprobs, \[2, 3\]"),
        (own("number"), "returned float; return a tensor"),
        (own("constant"), "doesn't depend on logprobs, so nothing would be learned"),
        (own("broken"), "raised ZeroDivisionError on a small batch: oh; it is called with logprobs, with the keywords"),
        (own("likelihood", size=2), r"unexpected keyword argument 'size'.*algorithm.loss.parameters \(size\)"),
    ],
)
def test_what_is_no_loss_is_refused_before_a_run(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        token_loss(GRPOConfig(loss=settings))
