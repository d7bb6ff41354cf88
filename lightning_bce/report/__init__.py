"""A run on one page: numbers, pictures, tables, configuration, and the command that repeats it."""

from lightning_bce.report.page import report_html as report_html
