"""The report, one self-contained HTML file of a results folder; the page of a study; a result as a notebook shows it."""

from __future__ import annotations

from repalign.report.page import notebook_html, render, write_report, write_study_page

__all__ = ["notebook_html", "render", "write_report", "write_study_page"]
