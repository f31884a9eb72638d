"""Graded verification of a .sif: `verify` runs it, `Report` is what it found."""

from sifkit.verify.checks import Check, Level, Outcome
from sifkit.verify.levels import verify
from sifkit.verify.report import Report, render_table, write_report
from sifkit.verify.request import Subject, VerifyOptions, gpu_environment

__all__ = [
    "Check",
    "Level",
    "Outcome",
    "Report",
    "Subject",
    "VerifyOptions",
    "gpu_environment",
    "render_table",
    "verify",
    "write_report",
]
