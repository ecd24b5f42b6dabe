"""A run in TensorBoard: curves, histograms, sample texts with their rewards, and its settings in the HPARAMS tab."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

import numpy as np

from gvm_ray.config import RunConfig
from gvm_ray.reporting.settings import flat_settings
from gvm_ray.sample_text import SampleText
from gvm_ray.types import Histograms, Metrics

_RESULTS = ("eval/accuracy", "reward/mean", "cost/generated_tokens")  # the columns beside the settings


class TensorBoardSink:
    """The event files of one run."""

    def __init__(self, folder: Path, config: RunConfig, *, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._writer = SummaryWriter(str(folder), purge_step=start_step if start_step else None)
        # SummaryWriter.add_hparams would write them as a run of their own, in a folder below this one.
        settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in flat_settings(config.model_dump(mode="json")).items()
        }
        experiment, start, _ = hparams(settings, dict.fromkeys(_RESULTS, 0.0))
        events = self._writer.file_writer
        assert events is not None  # until it is closed
        for summary in (experiment, start):
            events.add_summary(summary)

    def write(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None:
        """Write and flush one step; arrays without a finite value are left out."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        for name, values in histograms.items():
            finite = values[np.isfinite(values)]
            if finite.size:
                self._writer.add_histogram(name, finite, step)
        for text in texts:
            self._writer.add_text(f"samples/{text.rank}", as_markdown(text), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def as_markdown(text: SampleText) -> str:
    """The sample as Markdown, the model's words in code blocks, where nothing in them is taken for a format."""
    truncated = ", cut" if text.truncated else ""
    parts = [
        f"**reward {text.reward:g}** for prompt `{text.prompt_id}`, {text.num_tokens} tokens{truncated}, "
        f"policy {text.policy_version}",
        *(indent(part, "    ", lambda _: True) for part in (text.prompt, text.completion)),
        "answer:",
        indent(text.answer, "    ", lambda _: True),
    ]
    # A text may hold half of a surrogate pair, which no UTF-8 can.
    return "\n\n".join(parts).encode("utf-8", errors="replace").decode("utf-8")
