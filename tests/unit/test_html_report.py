"""The HTML report: what it says of runs, whatever they left, and that it stands on its own."""

import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_runs import NUM_STEPS, sample_text, write_run

from gvm_ray.cli import main
from gvm_ray.exceptions import DataError
from gvm_ray.reporting.html_report import write_html_report
from gvm_ray.reporting.html_report.curves import Calibration, running_mean
from gvm_ray.reporting.html_report.figures import VARIABLES
from gvm_ray.reporting.html_report.page import all_sections, key_numbers, settings_section
from gvm_ray.reporting.html_report.run_data import read_runs
from gvm_ray.reporting.progress import short_duration
from gvm_ray.reporting.summary import chosen_settings, differing_settings

SECTIONS = (
    "learning",
    "budget",
    "calibration",
    "phases",
    "distributions",
    "staleness",
    "optimization",
    "failures",
    "samples",
    "settings",
)
NASTY = "</pre><script>alert(1)</script> & <img src=x onerror=alert(2)> \ud800"
VOID = {"meta", "path", "use", "image", "rect", "img"}


class Page(HTMLParser):
    """Parses strictly: every element is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def values(self, name: str) -> list[str]:
        return [value or "" for key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A page about a finished run and one under way, of other settings."""
    runs = tmp_path_factory.mktemp("runs")
    first = write_run(runs / "first", texts=(sample_text(completion=NASTY), sample_text(rank="worst", reward=0.125)))
    second = write_run(runs / "second", num_steps=3, seed=5)
    return write_html_report([first, second], runs / "page" / "both.html")


@pytest.fixture(scope="module")
def page(written: list[Path]) -> Page:
    return Page(written[0].read_text(encoding="utf-8"))


# --- the page ---------------------------------------------------------------------------------------------------------
def test_the_page_parses_and_has_every_section(page: Page) -> None:
    assert page.open == []
    assert [each for each in page.values("id") if each in SECTIONS] == list(SECTIONS)
    assert [href for href in page.values("href") if href.startswith("#")] == [f"#{name}" for name in SECTIONS]


def test_the_page_needs_nothing_from_elsewhere(page: Page, written: list[Path]) -> None:
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    links = [*page.values("href"), *page.values("src"), *page.values("xlink:href")]
    assert all(link.startswith(("#", "data:")) for link in links)
    text = written[0].read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\((?!#)", text)


def test_figures_share_no_ids_and_refer_to_none_that_is_missing(page: Page, written: list[Path]) -> None:
    text = written[0].read_text(encoding="utf-8")
    referred = {*re.findall(r"url\(#([^)]+)\)", text), *re.findall(r'xlink:href="#([^"]+)"', text)}
    assert referred
    assert referred <= set(page.values("id"))


def test_figures_take_their_colours_from_the_page_in_light_and_dark(written: list[Path]) -> None:
    text = written[0].read_text(encoding="utf-8")
    style, body = text.split("</style>", 1)
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for colour, variable in VARIABLES.items():
        assert f"{variable}: {colour};" in light
        assert f"{variable}: #" in dark
        assert colour not in body
    assert "var(--series-0)" in body
    assert 'name="viewport" content="width=device-width' in light


def test_the_page_holds_the_runs_numbers(page: Page) -> None:
    for text in ("0.250 → 0.800 (+0.550)", "6 of 6", "9k", "finished", "0.250 → 0.400 (+0.150)", "3 of 6", "under way"):
        assert text in page.texts
    assert "0.0312" in page.texts  # Brier score: (0 + 0.25²) / 2
    assert "best, reward 0.75" in page.texts
    assert "worst, reward 0.125" in page.texts


def test_a_models_words_are_shown_and_never_run(page: Page) -> None:
    assert NASTY.replace("\ud800", "?") in page.texts


def test_every_figure_is_a_png_too(page: Page, written: list[Path]) -> None:
    assert page.tags.count("svg") == len(written) - 1
    assert len({path.name for path in written}) == len(written)
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.name.startswith("both-") for path in written[1:])


# --- what runs have left ----------------------------------------------------------------------------------------------
def test_a_run_that_has_only_begun_has_every_section(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "begun", num_steps=0)
    sections = all_sections(read_runs([folder]))
    assert [section.key for section in sections] == list(SECTIONS)
    assert all(section.note or section.table or section.panels for section in sections)
    assert write_html_report([folder], tmp_path / "page.html")[0].exists()


@pytest.mark.parametrize("missing", ["config.json", "histograms.jsonl", "samples.jsonl", "base_evaluation.json"])
def test_a_missing_file_costs_only_what_it_held(tmp_path: Path, missing: str) -> None:
    folder = write_run(tmp_path / "run", texts=(sample_text(),))
    (folder / missing).unlink()
    (run,) = read_runs([folder])
    assert [section.key for section in all_sections([run])] == list(SECTIONS)
    assert key_numbers(run)["generated tokens"] == "9k"


@pytest.mark.parametrize("unknown", ["NaN", "null"])
def test_a_base_accuracy_that_is_unknown_is_left_out(tmp_path: Path, unknown: str) -> None:
    folder = write_run(tmp_path / "unscored")
    (folder / "base_evaluation.json").write_text(f'{{"eval/accuracy": {unknown}}}')
    (run,) = read_runs([folder])
    assert run.base_accuracy is None
    assert key_numbers(run)["held-out accuracy"] == "0.800"
    assert "nan" not in write_html_report([folder], tmp_path / "page.html")[0].read_text().lower().split("<h2", 1)[0]


def test_rows_cut_short_are_left_out_and_damaged_ones_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", num_steps=2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    (run,) = read_runs([folder])
    assert run.num_steps == 2
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"metrics.jsonl' is damaged .*; move it away"):
        read_runs([folder])


def test_a_run_is_finished_under_way_or_ended_early(tmp_path: Path) -> None:
    finished, cut = write_run(tmp_path / "a"), write_run(tmp_path / "b", num_steps=3)
    assert [run.status for run in read_runs([finished, cut])] == ["finished", "under way"]
    an_hour_ago = time.time() - 3600
    for folder in (finished, cut):
        os.utime(folder / "metrics.jsonl", (an_hour_ago, an_hour_ago))
    assert [run.status for run in read_runs([finished, cut])] == ["finished", "ended early"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / parent / "same", num_steps=1) for parent in ("x", "y")]
    assert [run.name for run in read_runs(folders)] == [str(folder) for folder in folders]


def test_calibration_is_that_of_all_steps(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "run")])
    calibration = Calibration.of(run)
    assert calibration is not None
    assert calibration.brier == pytest.approx(0.25**2 / 2)
    assert calibration.expected.tolist() == [0.25, 0.75]
    assert calibration.seen.tolist() == [0.25, 1.0]
    assert calibration.num_prompts == 2 * NUM_STEPS
    assert calibration.rank_correlation == pytest.approx(1.0)


def test_the_running_mean_keeps_a_line_and_shortens_at_the_ends() -> None:
    assert running_mean(np.arange(10.0)).tolist() == np.arange(10.0).tolist()
    spike = np.zeros(40)
    spike[0] = 6.0
    assert running_mean(spike)[:3].tolist() == [3.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 s"), (45.25, "45.2 s"), (150, "2.5 min"), (7200, "2 h"), (129600, "1.5 d")]
)
def test_short_duration(seconds: float, text: str) -> None:
    assert short_duration(seconds) == text


# --- settings ---------------------------------------------------------------------------------------------------------
def test_only_settings_that_differ_are_listed(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a", num_steps=0, seed=1),
        write_run(
            tmp_path / "b", num_steps=0, allocator={"type": "uniform"}, learner={"optimizer": {"weight_decay": 0.5}}
        ),
    ]
    runs = read_runs(folders)
    table = settings_section(runs).table
    assert table is not None
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["seed"] == ["1", "0"]
    assert rows["allocator.type"] == ['"gvm_pool"', '"uniform"']
    assert rows["learner.optimizer.weight_decay"] == ["0.0", "0.5"]
    assert rows["allocator.candidates_per_step"][1] == "—"
    assert not {"name", "num_steps", "model.type"} & rows.keys()
    assert differing_settings([runs[0].config] * 2) == {}


def test_one_runs_settings_are_those_that_are_not_the_defaults(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "a", num_steps=0, allocator={"type": "gvm", "alpha": 0.5})])
    chosen = chosen_settings(run.config)
    assert chosen is not None
    assert chosen["allocator.type"] == '"gvm"'
    assert chosen["allocator.alpha"] == "0.5"
    assert chosen["model.type"] == '"scratch"'
    assert not {"name", "seed", "allocator.beta", "evaluation.every_steps"} & chosen.keys()
    assert chosen_settings({**run.config, "no_longer_a_setting": 1}) is None


# --- the command ------------------------------------------------------------------------------------------------------
def test_the_command_takes_a_name_under_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs" / "mine", num_steps=0)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "mine"]) == 0
    assert Path("runs/mine/report/report.html").exists()
    assert capsys.readouterr().out.startswith("runs/mine/report/report.html (")


def test_what_is_no_run_is_refused_with_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs" / "quickstart", num_steps=0)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "quickstrat"]) == 2
    error = capsys.readouterr().err
    assert "'quickstrat' is no run: neither it nor 'runs/quickstrat' is a folder with config.json" in error
    assert "there are e.g. quickstart; write a run's folder" in error
    assert main(["report", "quickstart", "--output", "page.pdf"]) == 2
    assert "--output 'page.pdf' doesn't end in .html; write e.g. --output report.html" in capsys.readouterr().err
