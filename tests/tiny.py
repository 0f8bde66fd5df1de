"""An experiment for whole runs that are disturbed: SimCLR on made images, a second or two long."""

FILE = """
from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import LARS
from ssljax.views.simclr import SimCLRViews

def config():
    return Experiment(
        method=SimCLR(
            SmallResNet(stem_patch=4, widths=(8, 16), blocks=(1, 1)), ProjectionHead(widths=(16, 8))
        ),
        recipe=SimCLRViews(size=24),
        data=Data(name='made_images'),
        optimizer=LARS(learning_rate=0.3, warmup_epochs=1.0),
        batch=32,
        steps={steps},
        evaluation=Evaluation(every={evaluate}, batch=64),
        checkpoint=Checkpointing(every={save}, keep_last={keep}),
        log_every=1,
    )
"""


def experiment(steps: int, evaluate: float, save: int, keep: int) -> str:
    """Its file's text.

    Args:
        steps: of the run.
        evaluate: epochs from one evaluation to the next.
        save: steps from one checkpoint to the next.
        keep: checkpoints that are kept.
    """
    return FILE.format(steps=steps, evaluate=evaluate, save=save, keep=keep)
