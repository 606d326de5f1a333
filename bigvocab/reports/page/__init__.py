"""The page of a report: one HTML file with tables and pictures, made from the dictionary of report.json alone."""

from bigvocab.reports.page.document import page_of

__all__ = ["page_of"]
