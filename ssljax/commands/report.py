"""`ssljax report`: a run as one HTML page."""

from ssljax.cli import Report
from ssljax.definitions import defined_in
from ssljax.report import page
from ssljax.train.folder import RunFolder


def main(options: Report) -> int:
    """Writes the page; returns the exit code."""
    folder = RunFolder.at(options.run, defined_in(options.definition))
    print(f'report: {page.write(folder, options.checkpoint)}')
    return 0
