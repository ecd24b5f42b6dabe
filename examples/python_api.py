"""The Python API: load a config, change it, train, and evaluate the result.

python examples/python_api.py
"""

from pathlib import Path

from gvm_ray import evaluate, load_config, train

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.toml"

if __name__ == "__main__":
    config = load_config(CONFIG, overrides=["name=python-api", "num_steps=5"])
    summary = train(config, overwrite=True)
    print(f"held-out accuracy {summary['base_accuracy']:.3f} -> {summary['final_accuracy']:.3f}")
    result = evaluate(f"{config.runs_dir}/{config.name}/model", config, num_samples=4)
    print(result.table())
