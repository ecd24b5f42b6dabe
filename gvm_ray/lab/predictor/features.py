"""The features that accept rates are predicted from, as rows of the package's own predictor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gvm_ray.allocators.predictive import PredictorConfig
from gvm_ray.allocators.predictor import PromptFeatures
from gvm_ray.lab.predictor.pool import Layer, PredictionPool
from gvm_ray.types import Float64Array, FloatArray, IndexArray

Cost = Literal["nothing", "a forward pass", "earlier samples"]
TOKEN_COLUMNS = 256  # of the token counts

COUNTS, LENGTH, EMBEDDING = "token counts", "length", "embedding mean"
RESPONSE_STATES, RESPONSE_STATISTICS, REWARD = "responses' states", "responses' statistics", "responses' reward"


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A set of features.

    Blocks are columns side by side. Blocks of responses are means over the first `earlier` of the prompt's earlier
    samples. With `history` the predictor has also observed the rewards of these, as in a run.
    """

    name: str
    cost: Cost
    blocks: tuple[str, ...] = ()
    earlier: int = 0
    history: bool = False


_OF_EARLIER: tuple[tuple[str, tuple[str, ...], bool], ...] = (  # name, blocks, history
    ("own history", (), True),
    ("responses' states", (RESPONSE_STATES,), False),
    ("responses' entropy, log-prob, length", (RESPONSE_STATISTICS,), False),
    ("responses' states, statistics, reward", (RESPONSE_STATES, RESPONSE_STATISTICS, REWARD), False),
    ("embedding mean, own history", (EMBEDDING,), True),
    ("embedding mean, responses' statistics, own history", (EMBEDDING, RESPONSE_STATISTICS), True),
    ("embedding mean, responses' statistics, reward", (EMBEDDING, RESPONSE_STATISTICS, REWARD), False),
    ("everything", (EMBEDDING, RESPONSE_STATES, RESPONSE_STATISTICS, REWARD), False),
)


def features(layers: Sequence[Layer], *, most: int) -> list[Feature]:
    """List the sets of features to compare; `most` is the number of a prompt's earlier samples."""
    found = [Feature(name=block, cost="nothing", blocks=(block,)) for block in (COUNTS, LENGTH, EMBEDDING)]
    for layer in layers:
        for pooling in ("mean", "last token") if layer else ("mean",):
            block = state_block(layer, pooling)
            found.append(Feature(name=block, cost="a forward pass" if layer else "nothing", blocks=(block,)))
    for num in (1, most):
        found += [
            Feature(name=f"{name} of {num}", cost="earlier samples", blocks=blocks, earlier=num, history=history)
            for name, blocks, history in _OF_EARLIER
        ]
    return found


def state_block(layer: Layer, pooling: str) -> str:
    """The name of the block of hidden states at a layer."""
    if not layer:
        return f"embedding {pooling}, all columns"
    return f"last layer, {pooling}" if layer == 1 else f"layer at {layer:.0%}, {pooling}"


def feature_rows(
    feature: Feature, pool: PredictionPool, *, earlier: IndexArray, config: PredictorConfig, seed: int
) -> Float64Array:
    """Rows [P, D]; each block alone is projected to at most `max_state_features` columns, as a run does with states.

    Args:
        feature: the set of features.
        pool: the policy's pool.
        earlier: the samples that play a prompt's earlier ones, as indices into its K.
        config: of the predictor.
        seed: of the projection.
    """
    used = earlier[: feature.earlier]
    parts = [_block(name, pool, used, config=config, seed=seed) for name in feature.blocks]
    return np.concatenate([np.zeros((len(pool.prompts), 0)), *parts], axis=1)


def _block(name: str, pool: PredictionPool, earlier: IndexArray, *, config: PredictorConfig, seed: int) -> Float64Array:
    columns = PromptFeatures(
        source_features=(),
        max_state_features=config.max_state_features,
        seed=seed,
        token_features=TOKEN_COLUMNS if name == COUNTS else 0,
    )
    return columns.rows(pool.prompts, None if name == COUNTS else _values(name, pool, earlier))


def _values(name: str, pool: PredictionPool, earlier: IndexArray) -> FloatArray:
    """The columns [P, D] of a block, not projected."""
    match name:
        case "length":
            return np.log([[len(prompt.token_ids)] for prompt in pool.prompts]).astype(np.float32)
        case "embedding mean":
            return pool.embeddings
        case "responses' states":
            return pool.response_states[:, earlier].mean(axis=1)
        case "responses' statistics":
            of_samples = np.stack([pool.entropies, pool.logprobs, pool.num_tokens], axis=-1)
            return of_samples[:, earlier].mean(axis=1).astype(np.float32)
        case "responses' reward":
            return np.nan_to_num(pool.accepted[:, earlier]).mean(axis=1, keepdims=True).astype(np.float32)
    by_pooling = (("mean", pool.mean_states), ("last token", pool.last_states))
    return {state_block(layer, pooling): values for pooling, of in by_pooling for layer, values in of.items()}[name]
