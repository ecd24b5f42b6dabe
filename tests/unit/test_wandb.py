"""Weights & Biases with the real package: the files of an offline run, and what may be missing."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import ConfigError
from gvm_ray.reporting import REQUIRED_KEYS, GuardedSinks, Reporter, RunFolder, check_sinks, create_sinks, sinks
from gvm_ray.types import SampleText

wandb = pytest.importorskip("wandb")
KEY = "0" * 40
TEXT = SampleText(
    rank="best",
    prompt_id="a",
    prompt="1+1=",
    completion="2",
    answer="2",
    reward=1.0,
    num_tokens=1,
    truncated=False,
    policy_version=0,
)


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    wandb.teardown()  # the package keeps the environment that it found first
    yield
    wandb.teardown()


def run_config(**settings: Any) -> RunConfig:
    return parse_config(
        {
            "name": "t",
            "seed": 11,
            "model": {"type": "scratch"},
            "prompts": {"train": {"type": "arithmetic"}},
            "reporting": {"tensorboard": False, "wandb": settings},
        }
    )


def log_steps(config: RunConfig, folder: RunFolder, *, start: int, stop: int) -> None:
    sinks = GuardedSinks(create_sinks(config, folder))
    with Reporter(config, folder.path, start_step=start, sinks=sinks) as reporter:
        for step in range(start, stop):
            numbers = {**dict.fromkeys(sorted(REQUIRED_KEYS), 1.0), "loss": step / 2}
            arrays = {"accept_rate": np.array([0.25, np.nan, 0.75]), "unknown": np.array([np.nan])}
            reporter.log_step(step, numbers, histograms=arrays, texts=[TEXT])
    sinks.close()
    assert sinks.num_failures == 0


# --- the files of an offline run --------------------------------------------------------------------------------------
def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format in blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(parts)
            parts = b""


def history(folder: RunFolder) -> tuple[set[str], dict[str, Any], list[dict[str, Any]]]:
    """Ids of the runs in the folder, the settings of the last, and the rows of all in their order."""
    ids: set[str] = set()
    settings: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    wandb.teardown()  # its process may write the last records after `finish`, and is waited for here
    for path in sorted(folder.wandb.glob("offline-run-*/*.wandb")):
        for record in records(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
                settings = {"project": record.run.project, "name": record.run.display_name} | {
                    item.key: json.loads(item.value_json) for item in record.run.config.update
                }
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return ids, settings, rows


def test_an_offline_run_can_be_read_back_and_a_resumed_one_is_the_same_run(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path), run_config(mode="offline", project="p")
    check_sinks(config)  # without a login
    log_steps(config, folder, start=0, stop=2)
    log_steps(config, folder, start=1, stop=3)
    ids, settings, rows = history(folder)
    assert ids == {(folder.wandb / "run_id").read_text()}
    assert (settings["project"], settings["name"], settings["seed"]) == ("p", "t", 11)
    assert settings["reporting"]["wandb"]["mode"] == "offline"
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 0.0), (1, 0.5), (1, 0.5), (2, 1.0)]
    assert all(row.keys() >= REQUIRED_KEYS | {"time_s", "samples/path"} for row in rows)
    assert rows[0]["histograms/accept_rate/_type"] == "histogram"
    assert sum(rows[0]["histograms/accept_rate/values"]) == 2
    assert not any(name.startswith("histograms/unknown") for name in rows[0])
    (table, *_) = sorted(folder.wandb.glob("offline-run-*/files/media/table/*.json"))
    content = json.loads(table.read_text())
    assert dict(zip(content["columns"], content["data"][0], strict=True))["completion"] == "2"


def test_an_overwritten_run_is_a_new_one(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path), run_config(mode="offline")
    log_steps(config, folder, start=0, stop=1)
    before, _, _ = history(folder)
    folder.create(overwrite=True)
    log_steps(config, folder, start=0, stop=1)
    after, _, rows = history(folder)
    assert len(rows) == 1
    assert before.isdisjoint(after)


# --- what may be missing ----------------------------------------------------------------------------------------------
def test_without_a_network_the_run_is_logged_offline_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(sinks, "_CONNECT_S", 2.0)
    folder, config = RunFolder(tmp_path), run_config()
    check_sinks(config)
    log_steps(config, folder, start=0, stop=2)
    said = [line for line in capsys.readouterr().out.splitlines() if "Biases" in line]
    assert len(said) == 1
    assert "can't be reached (" in said[0]
    assert f"`wandb sync {folder.wandb}/offline-run-*` uploads it" in said[0]
    ids, _, rows = history(folder)
    assert ids == {(folder.wandb / "run_id").read_text()}
    assert [row["step"] for row in rows] == [0, 1]


def test_an_online_run_without_a_login_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no login for Weights & Biases; run `wandb login`.*mode='offline'"):
        check_sinks(run_config())


def test_a_key_of_the_wrong_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ConfigError, match=r"login for Weights & Biases can't be used .*run `wandb login` again"):
        check_sinks(run_config())


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_missing_package_is_refused_with_what_to_install(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"run pip install 'gvm-ray\[wandb\]', or remove reporting\.wandb"):
        check_sinks(run_config(mode=mode))
