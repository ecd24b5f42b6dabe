"""A real model with two end tokens, its prompts, engines and samples, shared by the tests of this folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

from gvm_ray.config.engine import EngineConfig
from gvm_ray.config.prompts import TemplateConfig
from gvm_ray.engines import EngineKind, create_engine, generate
from gvm_ray.pretrained import load_tokenizer
from gvm_ray.protocols import Engine
from gvm_ray.tasks.rows import Task
from gvm_ray.tasks.templates import render_all
from gvm_ray.types import ModelSpec, Prompt, RolloutGroup, SamplingParameters
from tests.builders import prompt, sample_request
from tests.real.model import IndexUnreachable, smollm_folder
from tests.real.word_problems import PROBLEMS

TEMPLATE = TemplateConfig(type="chat", system_prompt="qwen-boxed")
MAX_MODEL_LEN = 192


@pytest.fixture(scope="session")
def smollm() -> Path:
    try:
        return smollm_folder()
    except IndexUnreachable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def folder(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model with <|endoftext|> (0) as a second end token besides <|im_end|> (2)."""
    folder = tmp_path_factory.mktemp("smollm")
    for file in smollm.iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0], "pad_token_id": 2}))
    return str(folder)


@pytest.fixture(scope="session")
def weights(folder: str) -> dict[str, Tensor]:
    return load_file(Path(folder) / "model.safetensors")


@pytest.fixture(scope="session")
def tokenizer(folder: str) -> Any:
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def prompts(tokenizer: Any) -> list[Prompt]:
    """All problems as chats."""
    tasks = [Task(prompt_id=str(i), problem=text, answer=answer) for i, (text, answer) in enumerate(PROBLEMS)]
    rendered = render_all(tasks, template=TEMPLATE, tokenizer=tokenizer)
    return [
        prompt(task.prompt_id, text=text, token_ids=ids.tolist(), answer=task.answer)
        for task, (text, ids) in zip(tasks, rendered, strict=True)
    ]


def _started(kind: EngineKind, folder: str) -> Iterator[Engine]:
    config = EngineConfig(type=kind, kv_cache_gib=0.25, max_num_seqs=16)
    engine = create_engine(kind, ModelSpec(path=folder, max_model_len=MAX_MODEL_LEN), config=config)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def transformers_engine(folder: str) -> Iterator[Engine]:
    yield from _started("transformers", folder)


@pytest.fixture(scope="session")
def vllm_engine(folder: str) -> Iterator[Engine]:
    pytest.importorskip("vllm")
    yield from _started("vllm", folder)


@pytest.fixture(params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Either engine, with the weights that the test before left in it."""
    return request.getfixturevalue(f"{request.param}_engine")


@pytest.fixture(scope="session")
def groups(transformers_engine: Engine, weights: dict[str, Tensor], prompts: list[Prompt]) -> list[RolloutGroup]:
    """Three samples of each of two prompts, of which every second one counts as right."""
    transformers_engine.load_weights(0, weights.items())
    requests = [sample_request(each, num_samples=3) for each in prompts[:2]]
    answers = generate(transformers_engine, requests, SamplingParameters(temperature=1.0, max_tokens=20))
    rewards = ([1.0, 0.0, 1.0], [0.0, 1.0, 0.0])
    return [
        RolloutGroup.of(request.prompt, completions, rewards=np.array(values))
        for request, completions, values in zip(requests, answers, rewards, strict=True)
    ]
