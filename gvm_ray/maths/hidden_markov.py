"""Hidden Markov models, one for each prompt: Dirichlet counts of transitions that fade, and beliefs carried forward."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def next_beliefs(beliefs: NDArray[np.float64], concentrations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Predict the states of the next step [P, S] by the expected transitions, c_ij / sum_j c_ij.

    Args:
        beliefs: [P, S] probabilities of the states now.
        concentrations: c [P, S, S] > 0 Dirichlet parameters of the transitions from state i to state j.
    """
    return np.einsum("pi,pij->pj", beliefs, _expected_transitions(concentrations))


def counted_transitions(
    concentrations: NDArray[np.float64],
    *,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    decay: float,
    prior: float,
) -> NDArray[np.float64]:
    """Add a step's expected transition to Dirichlet parameters that fade back to their prior, [P, S, S].

    The new parameters are decay c_ij + (1 - decay) prior + x_ij, where x_ij, the probability that the step went from i
    to j, is proportional to before_i P_ij after_j with the expected transitions P (arXiv 2603.10887).

    Args:
        concentrations: c [P, S, S] > 0.
        before: [P, S] probabilities of the states before the step.
        after: [P, S] probabilities of the states after it.
        decay: in [0, 1]; 1 forgets nothing.
        prior: > 0, the parameter of every transition before any was seen.
    """
    joint = before[:, :, None] * _expected_transitions(concentrations) * after[:, None, :]
    return _faded(concentrations, decay=decay, prior=prior) + joint / joint.sum(axis=(1, 2), keepdims=True)


def carried_forward(
    beliefs: NDArray[np.float64],
    concentrations: NDArray[np.float64],
    *,
    num_steps: ArrayLike,
    decay: float,
    prior: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Beliefs [P, S] and Dirichlet parameters [P, S, S] after so many steps without an observation.

    Args:
        beliefs: [P, S] probabilities of the states now.
        concentrations: [P, S, S] > 0.
        num_steps: [P] >= 0, of each prompt.
        decay: in [0, 1], of the Dirichlet parameters at each step.
        prior: > 0, what they fade to.
    """
    beliefs, concentrations, left = beliefs.copy(), concentrations.copy(), np.array(num_steps, dtype=np.int64)
    while (rows := np.flatnonzero(left > 0)).size:
        beliefs[rows] = next_beliefs(beliefs[rows], concentrations[rows])
        concentrations[rows] = _faded(concentrations[rows], decay=decay, prior=prior)
        left[rows] -= 1
    return beliefs, concentrations


def _expected_transitions(concentrations: NDArray[np.float64]) -> NDArray[np.float64]:
    return concentrations / concentrations.sum(axis=2, keepdims=True)


def _faded(concentrations: NDArray[np.float64], *, decay: float, prior: float) -> NDArray[np.float64]:
    return decay * concentrations + (1 - decay) * prior
