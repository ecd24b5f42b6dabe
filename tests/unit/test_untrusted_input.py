"""Where the package reads what can run code; a new place has to be thought about before it is added here."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "gvm_ray"
READERS = {"load", "loads", "load_all", "unsafe_load", "full_load", "Unpickler", "read_pickle"}
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml", "torch", "pandas"}
CALLS = {"os.system", "os.popen", "shelve.open"}

# What each may read: the reward process's parent; a model's tensors; a run folder of the user's own.
ALLOWED = {
    ("rewards/sandbox_child.py", "pickle.load"),
    ("rewards/sandbox_child.py", "pickle.loads"),
    ("model_files.py", "torch.load"),  # with weights_only=True: tensors alone
    ("learner/checkpoint.py", "torch.distributed.checkpoint.state_dict_loader.load"),
}


def dangerous_names(source: str) -> set[str]:
    """Full names of what a module uses that can run code found in the data it is given."""
    tree = ast.parse(source)
    origins: dict[str, str] = {}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            origins |= {
                (a.asname or a.name).split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            origins |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.keyword):
            value = node.value
            if node.arg in {"shell", "allow_pickle"} and not (isinstance(value, ast.Constant) and value.value is False):
                found.add(node.arg)
            if node.arg == "weights_only" and not (isinstance(value, ast.Constant) and value.value is True):
                found.add(node.arg)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
            found.add(node.func.id)
        if isinstance(node, ast.Attribute | ast.Name):
            first, _, rest = ast.unparse(node).partition(".")
            name = origins.get(first, first) + (f".{rest}" if rest else "")
            parts = name.split(".")
            if name in CALLS or (parts[0] in MODULES and parts[-1] in READERS):
                found.add(name)
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle\npickle.loads(b'')", {"pickle.loads"}),
        ("from pickle import load as read\nread(f)", {"pickle.load"}),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", {"allow_pickle"}),
        ("import torch\ntorch.load(f, weights_only=False)", {"torch.load", "weights_only"}),
        ("import subprocess\nsubprocess.run('ls', shell=True)", {"shell"}),
        ("import json\njson.load(f)\nmodel.eval()\nimport pickle\npickle.dumps(1)", set()),
        ("eval(text)\nprompts.eval", {"eval"}),
    ],
)
def test_what_can_run_code_is_found(source: str, expected: set[str]) -> None:
    assert dangerous_names(source) == expected


def test_the_package_reads_what_can_run_code_only_from_those_it_trusts() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        for name in dangerous_names(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED
