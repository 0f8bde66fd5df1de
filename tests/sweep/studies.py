"""Small studies, and results as a run would write them."""

import json

from ssljax import config
from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.study import Study, Variant
from ssljax.sweep.folder import StudyFolder, question
from ssljax.views.simclr import SimCLRViews

EXPERIMENT = Experiment(
    method=SimCLR(
        SmallResNet(stem_patch=4, widths=(4,), blocks=(1,)), ProjectionHead(widths=(8, 4))
    ),
    recipe=SimCLRViews(size=16, blur=0.0),
    data=Data(name='made_images'),
    optimizer=SGD(learning_rate=0.1, scaling='none', warmup_epochs=2.0),
    batch=16,
    epochs=10.0,
    evaluation=Evaluation(every=0.0),
)


def study(*names, **options):
    return Study('A study', tuple(Variant(name, EXPERIMENT) for name in names), **options)


def row(linear, few=0.5, knn=0.5, rank=3.0):
    return {
        'linear': {'top1': linear, 'top5': 1.0, 'count': 400},
        'few': {'mean': few, 'std': 0.02},
        'knn': {'top1': knn, 'top5': 1.0, 'count': 400},
        'c': 0.1,
        'k': 5,
        'dimensions': 4,
        'feature_std': 0.1,
        'effective_rank': rank,
        'uniformity': -1.0,
    }


def put(study, folder, scores):
    """Writes a result for every run, `scores` giving the row of each kind by variant and seed."""
    folder = StudyFolder.at(str(folder))
    for run in study.runs():
        if (rows := scores(run.variant.name, run.seed)) is None:
            continue
        folder.of(run).mkdir(parents=True, exist_ok=True)
        result = {
            'experiment': config.encode(run.experiment),
            'evaluation': question(study, run),
            'rows': rows,
            'note': 'Top-1 on 400 test images.',
            'parameters': 100,
            'steps': 160,
            'images': 2560,
            'passes': 10.0,
            'wall_s': 7.0 + run.seed,
            'peak_memory_mib': 500.0,
            'date': '2026-01-01T00:00:00+00:00',
            'commit': 'abc',
            'ssljax': '0',
            'devices': '1 x cpu',
        }
        (folder.of(run) / 'result.json').write_text(json.dumps(result))
    return folder
