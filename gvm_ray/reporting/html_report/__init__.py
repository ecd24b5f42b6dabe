"""One self-contained HTML page about one run or several: no network, no script, light and dark, also on a phone."""

from gvm_ray.reporting.html_report.page import write_html_report

__all__ = ["write_html_report"]
