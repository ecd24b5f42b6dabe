"""Model folders as half downloads, mix-ups and diverged runs leave them: found before an actor starts, or at load."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.torch import load_file, save_file

from gvm_ray.config import parse_config
from gvm_ray.exceptions import ModelError
from gvm_ray.learner.policy import load_causal_lm
from gvm_ray.prepare import prepare
from gvm_ray.pretrained import load_tokenizer
from tests.learner_cases import build_tiny_model

pytestmark = pytest.mark.faults

Spoil = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(build_tiny_model(tmp_path / "model"))


def prepared(folder: Path) -> None:
    """Check a run from this model as `train` does before anything starts."""
    values = {
        "name": "t",
        "prompts_per_step": 4,
        "model": {"type": "pretrained", "path": str(folder)},
        "prompts": {"train": {"type": "arithmetic", "size": 16}, "max_tokens": 32},
        "sampling": {"max_tokens": 16},
        "engine": {"type": "transformers"},
        "rewards": {"terms": [{"type": "exact"}]},
    }
    prepare(parse_config(values), run_dir=folder.parent / "run")


def load(folder: Path) -> Any:
    return load_causal_lm(folder, revision=None, trust_remote_code=False)


def without(*names: str) -> Spoil:
    return lambda folder: [(folder / name).unlink() for name in names]


def written(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


def configured(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | changes))

    return spoil


def cut(num_bytes: int) -> Spoil:
    return lambda folder: os.truncate(folder / "model.safetensors", num_bytes)


def in_shards(folder: Path) -> None:
    """An index that names a second file, which isn't there."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {f"w{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def weights_changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (without("tokenizer.json", "tokenizer_config.json"), "knows no text.*put the model's tokenizer.json"),
        (without("tokenizer.json"), "knows no text"),
        (written("tokenizer.json", "{"), "no tokenizer can be loaded.*JSONDecodeError"),
        (without("config.json"), "no model configuration can be loaded.*model_type"),
        (written("config.json", "[]"), "can be loaded.*write model.path as a folder with config.json"),
        (configured(model_type="of-tomorrow"), "no model configuration can be loaded.*of-tomorrow"),
        (configured(hidden_size="wide"), "can be loaded.*'hidden_size'"),
        (configured(num_attention_heads=0), "no causal language model can be loaded"),
        (written("config.json", '{"model_type": "gpt2", "n_embd": 32, "n_head": 2}'), "without `model.layers`"),
        (written("config.json", '{"model_type": "gemma3"}'), "Gemma3ForConditionalGeneration without `model.layers`"),
        (written("config.json", '{"model_type": "qwen2_vl"}'), "no causal language model can be loaded.*Qwen2VLConfig"),
        (written("config.json", '{"model_type": "gpt_oss"}'), "scaled_dot_product_attention"),
        (written("config.json", '{"model_type": "t5"}'), "no causal language model can be loaded.*T5Config"),
        (configured(vocab_size=50), "tokens up to number 98, but the model has embeddings for 50"),
        (without("model.safetensors"), "there are no weights in"),
        (cut(0), "'model.safetensors' is missing or damaged; fetch it again"),
        (cut(10_000), "'model.safetensors' is missing or damaged.*incomplete metadata"),
        (written("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"), "is missing or damaged"),
        (in_shards, "'model-00002-of-00002.safetensors' is missing or damaged"),
        (written("model.safetensors.index.json", "{}"), "no index of the weights can be loaded.*weight_map"),
    ],
)
def test_found_before_an_actor_starts(folder: Path, spoil: Spoil, expected: str) -> None:
    prepared(folder)
    spoil(folder)
    with pytest.raises(ModelError, match=expected) as error:
        prepared(folder)
    assert str(folder) in str(error.value)


def write_gguf(file: Path) -> None:
    """A llama of one block in GGUF, matrices with 8 bits a weight."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", "0", "1", "a", "b", "ab", "+"])
    writer.add_token_types([3, 3, 1, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    attention = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32}
    rows = attention | {"ffn_gate": 64, "ffn_up": 64, "ffn_down": 32}
    shapes = {f"blk.0.{name}.weight": (n, 64 if name == "ffn_down" else 32) for name, n in rows.items()}
    for name, shape in (shapes | {"token_embd.weight": (8, 32)}).items():
        matrix = quantize(rng.normal(size=shape).astype(np.float32), GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, matrix, raw_dtype=GGMLQuantizationType.Q8_0)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def refused_gguf(path: str | Path) -> tuple[str, str]:
    """The message for a model in GGUF, and the code in it."""
    with pytest.raises(ModelError, match=r"is a model in GGUF, which can't be trained; write the folder or") as error:
        prepared(Path(path))
    message, code = str(error.value).split(":\n", 1)
    assert repr(str(path)) in message
    return message, dedent(code)


def test_a_model_in_gguf_is_refused_with_lines_that_convert_it(tmp_path: Path) -> None:
    folder = tmp_path / "TINY-GGUF"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_gguf(folder / "tiny.Q8_0.gguf")
    (_, code), (message, same) = refused_gguf(folder), refused_gguf(folder / "tiny.Q8_0.gguf")
    assert code == same
    assert message.endswith(f"write {str(folder / 'tiny.Q8_0')!r}")
    exec(code, {})
    assert load(folder / "tiny.Q8_0").lm_head.weight.shape == (8, 32)
    assert load_tokenizer(folder / "tiny.Q8_0").tokenize("ab+1") == ["ab", "+", "1"]
    _, code = refused_gguf("owner/Tiny-GGUF")
    assert "source, file, made = 'owner/Tiny-GGUF', 'NAME.gguf', 'Tiny'" in code


def test_weights_beside_a_gguf_file_are_taken(folder: Path) -> None:
    named = folder.rename(folder.with_name("tiny-gguf"))
    (named / "tiny.gguf").write_bytes(b"GGUF")
    prepared(named)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w["model.norm.weight"].fill_(float("nan")), "'model.norm.weight' .*have infinities or NaN"),
        (lambda w: w["model.embed_tokens.weight"][7].fill_(float("inf")), "have infinities or NaN"),
        (lambda w: w.pop("model.layers.0.mlp.up_proj.weight"), "1 weights .*them 'model.layers.0.mlp.up_proj.weight'"),
        (lambda w: w.update({"model.norm.weight": torch.ones(7)}), "of another shape .*'model.norm.weight'"),
    ],
)
def test_found_when_the_weights_are_loaded(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], expected: str
) -> None:
    weights_changed(folder, change)
    with pytest.raises(ModelError, match=expected):
        load(folder)


def test_damaged_weights_are_a_model_error_at_load_too(folder: Path) -> None:
    cut(10_000)(folder)
    with pytest.raises(ModelError, match="incomplete metadata"):
        load(folder)


class RunsCode:
    """Pickled, an order to make a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._folder),)


def test_pickled_weights_give_tensors_and_run_no_code(folder: Path, tmp_path: Path) -> None:
    expected = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(expected, folder / "pytorch_model.bin")
    prepared(folder)
    loaded = load(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())

    shutil.copytree(folder, tmp_path / "evil")
    torch.save({**expected, "model.norm.weight": RunsCode(tmp_path / "made")}, tmp_path / "evil" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="UnpicklingError"):
        load(tmp_path / "evil")
    assert not (tmp_path / "made").exists()


def split_head(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a model with a head of its own, and a config.json that says it hasn't."""
    shutil.rmtree(folder)
    build_tiny_model(folder, tied=False)
    configured(tie_word_embeddings=True)(folder)
    return load_file(folder / "model.safetensors")


def into_shards(folder: Path) -> None:
    weights = split_head(folder)
    (folder / "model.safetensors").unlink()
    names = {name: f"model-0000{1 + (name == 'lm_head.weight')}-of-00002.safetensors" for name in weights}
    for file in set(names.values()):
        part = {name: tensor for name, tensor in weights.items() if names[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def into_pickle(folder: Path) -> None:
    torch.save(split_head(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("spoil", [split_head, into_shards, into_pickle])
def test_a_head_of_its_own_under_a_flag_that_ties_it_is_refused(folder: Path, spoil: Spoil) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=r'"tie_word_embeddings": true.*write "tie_word_embeddings": false'):
        prepared(folder)
    with pytest.raises(ModelError, match=r'write "tie_word_embeddings": false'):
        load(folder)
    configured(tie_word_embeddings=False)(folder)
    prepared(folder)
    head, embedding = load(folder).lm_head.weight, load(folder).model.embed_tokens.weight
    assert not torch.equal(head, embedding)


def test_an_equal_copy_of_a_tied_head_is_fine(folder: Path) -> None:
    weights_changed(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    prepared(folder)
    causal_lm = load(folder)
    assert causal_lm.lm_head.weight is causal_lm.model.embed_tokens.weight


def test_no_head_where_config_json_says_that_there_is_one_is_refused(folder: Path) -> None:
    configured(tie_word_embeddings=False)(folder)
    with pytest.raises(ModelError, match=r'have no lm_head\.weight.*"tie_word_embeddings": false; write true there'):
        prepared(folder)
