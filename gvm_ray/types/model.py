"""The model that engines serve."""

from dataclasses import dataclass

from gvm_ray.types.transfer import WeightTransfer


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model with its tokenizer, as an engine loads it."""

    path: str  # Hugging Face folder or hub id
    max_model_len: int  # prompt and response tokens of the longest request
    revision: str | None = None  # of a hub id; None takes the newest
    trust_remote_code: bool = False  # run code that comes with the model
    transfer: WeightTransfer = "object_store"  # how the learners send weights; "nccl" and "ipc" are vLLM's alone
