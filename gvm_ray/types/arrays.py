"""Names for kinds of arrays and of plain collections of numbers."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
IndexArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

GradientParameters = Literal["embed_tokens", "lm_head"]  # the matrix in which a gradient is measured
# Of a prompt's hidden states; "entropy" is the mean entropy, over its tokens, of the distributions that they predict.
Pooling = Literal["mean", "last", "both", "entropy"]
StatesKind = Pooling | Literal["embedding"]  # pooled hidden states, or the mean of the input embeddings
Metrics = dict[str, float]
Histograms = Mapping[str, Float64Array]
