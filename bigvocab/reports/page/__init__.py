"""One HTML page of a report: from report.json alone, with nothing to load and no script, to look at anywhere."""

from bigvocab.reports.page.document import page_of
from bigvocab.reports.page.files import page_of_file

__all__ = ["page_of", "page_of_file"]
