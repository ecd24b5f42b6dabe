"""TRL's GRPOTrainer on the end-to-end benchmark's case, timed step by step; prints one line of JSON.

It needs an environment of its own, since TRL is no dependency of gvm_ray; from the root of the repository, on a CPU:

    python3 -m venv trl-venv
    trl-venv/bin/pip install torch==2.13.0+cpu
    trl-venv/bin/pip install -c constraints.txt trl==1.16.0 transformers accelerate datasets
    trl-venv/bin/python tests/speed/trl_grpo.py MODEL PROMPTS.jsonl --steps 13

`gvm-ray bench end_to_end --trl-python trl-venv/bin/python` calls it with the same model and prompts as its own runs.
Generation is the trainer's ordinary one (transformers), training is float32 with one optimizer update a step, and
nothing is logged or saved.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


class StepClock(TrainerCallback):
    """Seconds from the end of one step to the end of the next; the first counts from the start of training.

    Beside the wall's the processor's, which other work on the machine lengthens less.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._last = self._last_cpu = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last, self._last_cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        self.seconds.append(now - self._last)
        self.cpu_seconds.append(cpu - self._last_cpu)
        self._last, self._last_cpu = now, cpu
        print(f"step {len(self.seconds)}: {self.seconds[-1]:.2f} s, CPU {self.cpu_seconds[-1]:.2f} s", file=sys.stderr)


class ExactMatch:
    """1 if the last boxed content is the answer, else 0; remembers the completions' lengths and rewards."""

    __name__ = "exact_match"

    def __init__(self) -> None:
        self.num_tokens: list[int] = []
        self.rewards: list[float] = []

    def __call__(
        self, *, completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any
    ) -> list[float]:
        found = [BOXED.findall(completion) for completion in completions]
        rewards = [float(bool(texts) and texts[-1] == gold) for texts, gold in zip(found, answer, strict=True)]
        self.num_tokens += [len(ids) for ids in completion_ids]
        self.rewards += rewards
        return rewards


def trainer_config(options: argparse.Namespace, folder: str) -> GRPOConfig:
    """One update a step on all of its completions; what only costs time or memory on a small CPU model is off."""
    return GRPOConfig(
        output_dir=folder,
        max_steps=options.steps,
        per_device_train_batch_size=options.prompts_per_step * options.samples_per_prompt,
        num_generations=options.samples_per_prompt,
        max_completion_length=options.max_tokens,
        temperature=1.0,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        beta=0.0,
        loss_type="grpo",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=options.seed,
    )


def main() -> None:
    """Train for the asked number of steps and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of the model and its tokenizer")
    parser.add_argument("prompts", type=Path, help="JSONL with the fields `prompt` and `answer`")
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--warm-up-steps", type=int, default=3, help="left out of the median")
    parser.add_argument("--prompts-per-step", type=int, default=32)
    parser.add_argument("--samples-per-prompt", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.steps <= options.warm_up_steps:
        parser.error(f"--steps {options.steps} leaves nothing after {options.warm_up_steps} warm-up steps")
    torch.set_num_threads(options.threads)
    rows = [json.loads(line) for line in options.prompts.read_text(encoding="utf-8").splitlines()]
    clock, reward = StepClock(), ExactMatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=options.model,
            reward_funcs=reward,
            args=trainer_config(options, folder),
            train_dataset=Dataset.from_list([{"prompt": row["prompt"], "answer": row["answer"]} for row in rows]),
            callbacks=[clock],
        )
        trainer.train()
    step_s = median(clock.seconds[options.warm_up_steps :])
    figures = {
        "step_s": clock.seconds,
        "step_cpu_s": clock.cpu_seconds,
        "completions_per_s": options.prompts_per_step * options.samples_per_prompt / step_s,
        "mean_completion_tokens": sum(reward.num_tokens) / len(reward.num_tokens),
        "mean_reward": sum(reward.rewards) / len(reward.rewards),
        "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
