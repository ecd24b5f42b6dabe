"""How models are evaluated on benchmarks where no config says it: as in the GVM experiments (arXiv 2505.02391)."""

from typing import Any


def benchmark_defaults(model: str) -> dict[str, Any]:
    """Values of a RunConfig: chats that ask for a boxed answer, 3,072 tokens, temperature 1, graded by Math-Verify."""
    return {
        "name": "evaluation",
        "model": {"type": "pretrained", "path": model},
        "prompts": {
            "train": {"type": "file", "path": "(each benchmark)"},
            "template": {"type": "chat", "system_prompt": "qwen25-math-cot"},
            "max_tokens": 1024,
        },
        "sampling": {"max_tokens": 3072},
        "allocator": {"type": "uniform"},
    }
