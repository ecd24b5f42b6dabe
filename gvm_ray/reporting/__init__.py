"""Records of a run: its folder, each step's numbers, plots and a summary."""

from gvm_ray.reporting.plots import plot_accuracy, plot_allocation, write_plots
from gvm_ray.reporting.reporter import REQUIRED_KEYS, Callback, Reporter
from gvm_ray.reporting.run_folder import RunFolder, read_rows, read_steps
from gvm_ray.reporting.sinks import GuardedSinks, Sink, check_sinks, create_sinks
from gvm_ray.reporting.summary import read_summary, summary_lines, write_summary

__all__ = [
    "REQUIRED_KEYS",
    "Callback",
    "GuardedSinks",
    "Reporter",
    "RunFolder",
    "Sink",
    "check_sinks",
    "create_sinks",
    "plot_accuracy",
    "plot_allocation",
    "read_rows",
    "read_steps",
    "read_summary",
    "summary_lines",
    "write_plots",
    "write_summary",
]
