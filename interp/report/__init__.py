"""The page of a run: `render(run_folder)` makes one self-contained HTML file from the tables in it."""

from __future__ import annotations

from interp.report.page import render

__all__ = ["render"]
