"""A study's folder: what it holds, under which names, and which runs are done.

runs/NAME/SEED/       a run's folder, as `ssljax train` and `ssljax evaluate` leave it, and
    log.txt           what they said
    training.json     what training took
    result.json       written last: the run is done
results.csv           a line for every row of every run that is done
results.md            the table, mean and standard deviation over seeds
figure.png            the figure
curves.png            validation on the way, where runs look at it more than once
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from ssljax import config
from ssljax.experiment import FREE_ON_RESUME
from ssljax.study import Run, Study


@dataclasses.dataclass(frozen=True)
class StudyFolder:
    """Paths of a study, on a disk (locks need one).

    Attributes:
        path: the folder.
    """

    path: pathlib.Path

    @classmethod
    def at(cls, path: str) -> 'StudyFolder':
        """The folder at `path`, which need not exist yet.

        Raises:
            ValueError: if it is in a bucket.
        """
        if '://' in path:
            raise ValueError(f'{path} is not on a disk, where runs can be locked; use a --folder')
        return cls(pathlib.Path(path))

    def of(self, run: Run) -> pathlib.Path:
        """The folder of a run."""
        return self.path / 'runs' / run.variant.name / str(run.seed)

    def log(self, run: Run) -> pathlib.Path:
        """What a run said."""
        return self.of(run) / 'log.txt'

    def result(self, study: Study, run: Run) -> dict[str, Any] | None:
        """The result of a run; None if it has none, or one by another evaluation than asked for."""
        file = self.of(run) / 'result.json'
        if not file.exists():
            return None
        result = json.loads(file.read_text())
        asked, had = question(study, run), result['evaluation']
        # More rows than asked for do no harm.
        good = asked['train'] == had['train'] and asked['references'] <= had['references']
        return result if good else None

    def results(self, study: Study) -> list[tuple[Run, dict[str, Any]]]:
        """The results there are, in the order of the variants and seeds."""
        runs = sorted(study.runs(), key=lambda run: study.variants.index(run.variant))
        found = ((run, self.result(study, run)) for run in runs)
        return [(run, result) for run, result in found if result is not None]

    def check(self, study: Study, run: Run) -> None:
        """Raise ValueError, naming what differs, if there is a result of another experiment.

        Fields that one of the two does not know are no difference: they came, or went, later.
        """
        result = self.result(study, run)
        if result is None:
            return
        old, new = result['experiment'], config.encode(run.experiment)
        differences = [
            f'  {path}: {a!r} there, {b!r} now'
            for path, a, b in config.diff(old, new)
            if not any(path == free or path.startswith(f'{free}.') for free in FREE_ON_RESUME)
            and _has(old, path)
            and _has(new, path)
        ]
        if differences:
            raise ValueError(
                f'{self.of(run)} holds the result of another experiment; it differs in\n'
                + '\n'.join(differences)
                + '\nChoose another --folder for the changed study, or remove that folder to run '
                'it again'
            )


def question(study: Study, run: Run) -> dict[str, Any]:
    """The options of `ssljax evaluate` that a study sets for a run."""
    return {'train': study.probe_split, 'references': study.has_references(run.variant)}


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, whatever happens meanwhile."""
    half = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    data = content.encode() if isinstance(content, str) else content
    with half.open('wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)


def _has(encoded: Any, path: str) -> bool:
    """Whether an encoded configuration has a field of that path."""
    for name in filter(None, path.split('.')):
        if isinstance(encoded, dict) and name in encoded.get('fields', ()):
            encoded = encoded['fields'][name]
        elif isinstance(encoded, list) and name.isdigit() and int(name) < len(encoded):
            encoded = encoded[int(name)]
        else:
            return False
    return True
