"""One self-contained HTML page about one run or several: no network, light and dark, also on a phone.

A file has no script either; a page that is served to follow runs has one, which asks its server for itself.
"""

from gvm_ray.reporting.html_report.page import write_html_report

__all__ = ["write_html_report"]
