"""The report, one self-contained HTML file of a results folder; a result as a notebook shows it."""

from __future__ import annotations

from repalign.report.notebook import notebook_html
from repalign.report.page import render, write_report
from repalign.report.study_page import write_study_page

__all__ = ["notebook_html", "render", "write_report", "write_study_page"]
