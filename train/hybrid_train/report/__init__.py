"""The report of a run, and the style, tables and plots that other pages share."""

from hybrid_train.report.page import DISCLAIMER, STYLE, esc, figures, rows_table
from hybrid_train.report.plots import COLOURS, GREY, canvas, legend, svg

__all__ = [
    "COLOURS",
    "DISCLAIMER",
    "GREY",
    "STYLE",
    "canvas",
    "esc",
    "figures",
    "legend",
    "rows_table",
    "svg",
]
