"""The report of a run: what was reached, what was only inferred, and how it came about.

with Store.read("runs/three") as store:
report = Report(facts_of(store))
page(report)            # one self-contained HTML page
files(report, "png")    # the figures, by file name
"""

from avops.search.report.data import Baseline, Headline, Report, Row
from avops.search.report.facts import Facts, Saved, facts_of
from avops.search.report.gallery import figures, files
from avops.search.report.html import page

__all__ = [
    "Baseline",
    "Facts",
    "Headline",
    "Report",
    "Row",
    "Saved",
    "facts_of",
    "figures",
    "files",
    "page",
]
