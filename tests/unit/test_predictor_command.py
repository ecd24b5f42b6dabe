"""The measurement of predictions from end to end on tiny policies, its features, and settings that are refused."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gvm_ray.allocators.predictive import PredictorConfig
from gvm_ray.cli import main
from gvm_ray.config import PredictionConfig, load_prediction
from gvm_ray.exceptions import ConfigError
from gvm_ray.lab.predictor.features import Feature, feature_rows, features
from gvm_ray.lab.predictor.measure import markdown
from gvm_ray.lab.predictor.policies import policy_config
from gvm_ray.lab.predictor.pool import PolicyStates, PredictionPool
from gvm_ray.lab.predictor.scores import FeatureScore, policy_scores
from gvm_ray.learner.policy import PolicyModule, load_causal_lm
from gvm_ray.learner.sequences import pad_samples, prompt_samples
from tests.builders import completion, prompt
from tests.learner_cases import build_tiny_model
from tests.tiny_runs import TINY_TOML

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "predictor").glob("*.toml"))
SETTINGS = """\
name = "tiny-predictor"
config = "tiny.toml"
num_prompts = 16
num_samples = 4
num_folds = 4
paid_prompts = [8]
layers = [0.5, 1.0]
policies = [{ name = "early", warm_start_updates = 4 }, { name = "late", step = 3 }]
"""


def write_settings(folder: Path, text: str = SETTINGS) -> Path:
    (folder / "tiny.toml").write_text(TINY_TOML, encoding="utf-8")
    path = folder / "predictor.toml"
    path.write_text(text, encoding="utf-8")
    return path


def pool(
    rates: np.ndarray,
    *,
    num_samples: int = 8,
    signal: np.ndarray | None = None,
    unscored: float = 0.0,
    step: int = 0,
    seed: int = 0,
) -> PredictionPool:
    """Samples of prompts with these accept rates; the embedding is `signal`, everything else is noise."""
    rng = np.random.default_rng(seed)
    shape = (len(rates), num_samples)
    rewards = (rng.random(shape) < rates[:, None]).astype(np.float64)
    rewards[rng.random(shape) < unscored] = np.nan

    def noise(*sizes: int) -> np.ndarray:
        return rng.normal(size=(len(rates), *sizes)).astype(np.float32)

    return PredictionPool(
        name=f"after {step}",
        step=step,
        accept_threshold=0.5,
        prompts=tuple(prompt(f"p{row}", token_ids=rng.integers(90, size=5 + row % 7)) for row in range(len(rates))),
        rewards=rewards,
        num_tokens=rng.integers(1, 9, size=shape).astype(np.float64),
        entropies=rng.random(shape),
        logprobs=-rng.random(shape),
        response_states=noise(num_samples, 300),
        embeddings=noise(3) if signal is None else signal[:, None].astype(np.float32),
        mean_states={1.0: noise(300)},
        last_states={1.0: noise(300)},
    )


def settings(**changes: object) -> PredictionConfig:
    values = {"name": "p", "config": "run.toml", "num_prompts": 240, "layers": [1.0], "paid_prompts": [64]}
    return PredictionConfig.model_validate({**values, **changes})


def by_name(scores: list[FeatureScore]) -> dict[tuple[str, int | None], FeatureScore]:
    return {(score.features, score.paid): score for score in scores}


def test_tiny_policies_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = write_settings(tmp_path), tmp_path / "out"
    assert main(["predictor", str(path), "--output", str(output), "--set", f"runs_dir={tmp_path}"]) == 0
    text = (output / "predictor.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "## early" in text
    assert (output / "predictor.png").stat().st_size > 10_000
    with (output / "predictor.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = {feature.name for feature in features((0.5, 1.0), most=2)}
    assert {row["features"] for row in rows if row["policy"] == "early"} == expected
    late = {row["features"] for row in rows if row["policy"] == "late"} - expected
    assert late == {f"embedding mean, history of 2 from early, forgetting {each}" for each in ("0.9", "0.97", "1")}
    assert {row["paid"] for row in rows} == {"", "8"}


def test_what_predicts_is_found_and_what_does_not_is_not() -> None:
    rates = np.random.default_rng(0).beta(0.7, 1.3, size=240)
    logits = np.log(rates.clip(1e-3) / (1 - rates).clip(1e-3)).clip(-4, 4)
    found = by_name(list(policy_scores(settings(), pool(rates, signal=logits))))
    assert found["embedding mean", None].scores.true_correlation > 0.9
    assert found["embedding mean", 64].scores.true_correlation > 0.8
    assert abs(found["last layer, mean", None].scores.true_correlation) < 0.25
    assert abs(found["responses' states of 4", None].scores.true_correlation) < 0.25
    one, four = (found[f"own history of {num}", None].scores.true_correlation for num in (1, 4))
    assert 0.4 < one < four < 0.95
    assert found["embedding mean", None].scores.brier < 1.25 * found["embedding mean", None].ceiling.brier
    assert found["own history of 4", None].scores.correlation < found["own history of 4", None].ceiling.correlation


def test_a_prompt_is_never_predicted_from_the_samples_it_is_judged_by() -> None:
    rates = np.full(240, 0.5)  # only the noise of the judged samples themselves could be predicted
    for score in policy_scores(settings(), pool(rates)):
        assert abs(score.scores.correlation) < 0.2, score.features


def test_samples_of_an_earlier_policy_are_forgotten_by_the_steps_between() -> None:
    rates = np.random.default_rng(0).beta(0.7, 1.3, size=240)
    early, late = pool(rates), pool(rates, step=40, seed=1)
    found = by_name(list(policy_scores(settings(), late, [early])))
    name = "embedding mean, history of 4 from after 0, forgetting"
    kept, forgotten = (found[f"{name} {each}", None].scores.true_correlation for each in ("1", "0.9"))
    assert kept > 0.6
    assert forgotten < kept


def test_unscored_samples_count_for_nothing() -> None:
    rates = np.random.default_rng(0).beta(0.7, 1.3, size=240)
    found = by_name(list(policy_scores(settings(), pool(rates, signal=rates, unscored=0.2))))
    assert found["embedding mean", None].scores.true_correlation > 0.85
    assert all(np.isfinite(score.scores.brier) for score in found.values())


@pytest.mark.parametrize(
    ("blocks", "earlier", "columns"),
    [
        ((), 1, 0),
        (("token counts",), 0, 256),
        (("length",), 0, 1),
        (("embedding mean",), 0, 3),
        (("last layer, mean",), 0, 16),  # projected
        (("responses' states",), 2, 16),
        (("responses' statistics",), 2, 3),
        (("embedding mean", "responses' statistics", "responses' reward"), 4, 7),
    ],
)
def test_rows_have_the_columns_of_their_blocks(blocks: tuple[str, ...], earlier: int, columns: int) -> None:
    drawn = pool(np.full(20, 0.5))
    feature = Feature(name="f", cost="nothing", blocks=blocks, earlier=earlier)
    config = PredictorConfig(max_state_features=16)
    rows = feature_rows(feature, drawn, earlier=np.arange(4, 8), config=config, seed=0)
    assert rows.shape == (20, columns)
    if "responses' reward" in blocks:
        np.testing.assert_allclose(rows[:, -1], drawn.rewards[:, 4:].mean(1))
        np.testing.assert_allclose(rows[:, 3], drawn.entropies[:, 4:].mean(1), rtol=1e-6)


def test_states_are_those_of_the_model(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path)
    policy = PolicyModule(
        load_causal_lm(path, revision=None, trust_remote_code=False), temperature=0.7, chunk_tokens=64
    ).eval()
    model = AutoModelForCausalLM.from_pretrained(path)
    asked = prompt("p", token_ids=[5, 6, 7, 8, 9])
    answers = [completion(num_tokens=size) for size in (1, 4, 3)]
    found = PolicyStates(policy, layers=(0.0, 0.5, 1.0), response_layer=0.5).of(asked, answers)
    batch = pad_samples(prompt_samples([asked.token_ids], shared=False)[0], device=torch.device("cpu"))
    for pooling, states in (("mean", found.mean[1.0]), ("last", found.last[1.0])):
        expected = policy.prompt_states(batch, pooling=pooling)[0].detach().numpy()
        np.testing.assert_allclose(states, expected, rtol=1e-4, atol=1e-5)
    embedded = model.get_input_embeddings().weight[5:10].mean(0).detach().numpy()
    np.testing.assert_allclose(found.mean[0.0], embedded, rtol=1e-4, atol=1e-6)
    for row, answer in enumerate(answers):
        ids = torch.tensor([*asked.token_ids.tolist(), *answer.token_ids.tolist()])
        read = model(ids[None], output_hidden_states=True)
        expected = read.hidden_states[1][0, 5:].mean(0).detach().numpy()
        np.testing.assert_allclose(found.responses[row], expected, rtol=1e-4, atol=1e-5)
        logprobs = (read.logits[0, 4:-1] / 0.7).log_softmax(-1)
        own = logprobs.gather(-1, ids[5:, None]).mean().item()
        assert found.logprobs[row] == pytest.approx(own, rel=1e-4)
        entropy = -(logprobs.exp() * logprobs).sum(-1).mean().item()
        assert found.entropies[row] == pytest.approx(entropy, rel=1e-4)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_settings_load_and_every_policy_is_valid(path: Path) -> None:
    shipped = load_prediction(path)
    assert shipped.name == f"predictor-{path.stem}"
    for policy in shipped.policies:
        assert policy_config(shipped, policy, folder=path.parent).name == shipped.name


def test_a_trained_policy_takes_the_place_of_model_and_warm_start(tmp_path: Path) -> None:
    path = write_settings(tmp_path, SETTINGS.replace('name = "late"', 'name = "late", model = "some/folder"'))
    asked = load_prediction(path)
    early, late = (policy_config(asked, policy, folder=tmp_path) for policy in asked.policies)
    assert early.warm_start is not None
    assert early.warm_start.num_updates == 4
    assert late.warm_start is None
    assert late.model.path == "some/folder"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_samples = 4", "num_samples = 5", "multiple of 2"),
        ("[8]", "[13]", "paid_prompts=13 is more than the 12 prompts outside a fold; write at most 12"),
        ("num_folds = 4", "num_folds = 40", "num_folds=40 is above num_prompts=16"),
        ("step = 3", 'model = "m", warm_start_updates = 9', "leave one of them out"),
        ('"late", step = 3', '"late" }, { name = "x", step = 3 }, { name = "y", step = 1', "order of their steps"),
        ('"late"', '"early"', "more than once"),
        ("num_prompts", "prompts", "did you mean 'num_prompts'"),
    ],
)
def test_wrong_settings_are_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_prediction(write_settings(tmp_path, SETTINGS.replace(old, new)))


def test_too_many_prompts_and_a_missing_warm_start_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_settings(tmp_path)
    assert main(["predictor", str(path), "--prompts", "900", "--set", f"runs_dir={tmp_path}"]) == 2
    assert "num_prompts=900, but there are only 48 training prompts" in capsys.readouterr().err
    text = TINY_TOML
    start, end = text.index("[warm_start]"), text.index("[prompts]")
    (tmp_path / "tiny.toml").write_text(text[:start] + text[end:], encoding="utf-8")
    assert main(["predictor", str(path), "--dry-run"]) == 2
    assert "policy 'early' sets warm_start_updates=4, and 'tiny.toml' has no [warm_start]" in capsys.readouterr().err


def test_a_policy_that_solves_nothing_has_no_correlations() -> None:
    unsolved = pool(np.zeros(240))
    scores = list(policy_scores(settings(), unsolved))
    assert all(np.isnan(score.deviation) for score in scores)
    assert "| length | nothing | - | - |" in markdown(scores, [unsolved])
