"""Weights & Biases: one run there for a run here, across its restarts."""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from typing import Any

import numpy as np

from gvm_ray.config import RunConfig
from gvm_ray.config.run import WandbConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.reporting.run_folder import RunFolder
from gvm_ray.types import Histograms, Metrics, SampleText

_CONNECT_S = 30.0  # for the first answer of the server
_UPLOAD_S = 120.0  # for what is still to be uploaded when the run is over


def check_wandb(config: WandbConfig) -> None:
    """Check that the package is installed and, for an online run, that there is a login. Needs no network.

    Raises:
        ConfigError: what is missing, and what to do.
    """
    spec = find_spec("wandb")
    if spec is None or spec.origin is None:  # not just a folder of that name
        raise ConfigError(
            "reporting.wandb needs a package that is not installed; run pip install 'gvm-ray[wandb]', or remove "
            "reporting.wandb"
        )
    if config.mode == "online" and not _has_login():
        raise ConfigError(
            "reporting.wandb has mode='online', but there is no login for Weights & Biases; run `wandb login`, set "
            "WANDB_API_KEY, or write reporting.wandb.mode='offline'"
        )


def _has_login() -> bool:
    import wandb

    try:
        return wandb.login(prompt=False, verify=False)
    except (wandb.Error, ValueError) as error:  # e.g. a key of the wrong form
        raise ConfigError(f"the login for Weights & Biases can't be used ({error}); run `wandb login` again") from error


class WandbSink:
    """Logs every step to the run whose id is kept in the run's folder.

    The horizontal axis is `step`: a step that is made again after a return to a checkpoint is a second point there,
    which Weights & Biases' own step, that can only grow, would drop.
    """

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        """Start or continue the run. If the server can't be reached, print so and log offline."""
        assert config.reporting.wandb is not None
        folder.wandb.mkdir(parents=True, exist_ok=True)
        kept = folder.wandb / "run_id"
        if not kept.is_file():
            kept.write_text(secrets.token_hex(8), encoding="utf-8")
        self._run = _started(config, folder, run_id=kept.read_text(encoding="utf-8"))
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None:
        """Log one step; arrays without a finite value are left out."""
        import wandb

        values: dict[str, Any] = {"step": step, **metrics}
        for name, array in histograms.items():
            finite = array[np.isfinite(array)]
            if finite.size:
                values[f"histograms/{name}"] = wandb.Histogram(finite.tolist())
        if texts:
            columns: list[Any] = [field.name for field in fields(SampleText)]
            values["samples"] = wandb.Table(columns=columns, data=[list(asdict(text).values()) for text in texts])
        self._run.log(values)

    def close(self) -> None:
        """Upload what is left, for a limited time; `wandb sync` uploads the rest."""
        self._run.finish()


def _started(config: RunConfig, folder: RunFolder, *, run_id: str) -> Any:
    import wandb

    settings = config.reporting.wandb
    assert settings is not None
    arguments: dict[str, Any] = {
        "project": settings.project,
        "entity": settings.entity,
        "name": config.name,
        "id": run_id,
        "resume": "allow",
        "dir": str(folder.path),  # into its folder wandb/
        "config": config.model_dump(mode="json"),
        "reinit": "create_new",  # another run of this process stays as it is
        "settings": wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            init_timeout=_CONNECT_S,
            finish_timeout=_UPLOAD_S,
        ),
    }
    try:
        run = wandb.init(mode=settings.mode, **arguments)
    except wandb.Error as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(
            f"warning: Weights & Biases can't be reached ({reason}); the run is logged offline, and `wandb sync "
            f"{folder.wandb}/offline-run-*` uploads it",
            flush=True,
        )
        wandb.teardown()  # the failed run still holds the id
        return wandb.init(mode="offline", **arguments)
    print(f"Weights & Biases run {run_id}, {run.url if settings.mode == 'online' else 'offline'}", flush=True)
    return run
