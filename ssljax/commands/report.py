"""`ssljax report`: a run as one HTML page."""

from ssljax.cli import Report
from ssljax.report import page
from ssljax.train.folder import RunFolder


def main(options: Report) -> int:
    """Writes the page; returns the exit code."""
    print(f'report: {page.write(RunFolder.at(options.run))}')
    return 0
