"""What a study refuses, in which order it runs, and how it is cut to an equal number of images."""

import dataclasses
import math

import jaxtyping
import pytest
from sweep.studies import EXPERIMENT, study

from ssljax.definitions import load_study
from ssljax.experiment import Data
from ssljax.methods.dino import DINO, Temperature
from ssljax.optim import SGD, AdamW, ByPath, Part
from ssljax.study import Study, Variant, lasting


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda: study(), 'has no variants'),
        (lambda: study('a', 'b', 'a'), "two variants are called 'a'"),
        (lambda: study('a', 'A'), 'give each its own name'),
        (lambda: study('a/b'), 'names its folder too'),
        (lambda: study('..'), 'names its folder too'),
        (lambda: study('a', seeds=()), "seeds of variant 'a' are"),
        (lambda: study('a', seeds=(1, 1)), 'each once'),
        (lambda: study('alpha', references=('alfa',)), "no variant 'alfa'; did you mean alpha"),
        (lambda: study('a', figure=()), 'the figure shows'),
        (lambda: study('a', figure=('lin',)), 'name one or more of linear, few, knn'),
        (lambda: study('a', 'b').runs(['c']), "no variant 'c'; it has a, b"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused(make, says, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)  # as users have it
    with pytest.raises(ValueError, match=says):
        make()


def test_variants_are_scored_on_the_same_images():
    def on(**data):
        return dataclasses.replace(EXPERIMENT, data=Data(name='made_images', **data))

    pair = lambda **data: (Variant('a', on()), Variant('b', on(**data)))
    for field in ('test', 'validation', 'train'):
        with pytest.raises(ValueError, match=rf"'a' has data.{field} '{field}' and 'b' 'train\[:9"):
            Study('s', pair(**{field: 'train[:9]'}))
    # How much is trained on may be what is studied, if the probes are fitted to the same.
    Study('s', pair(train='train[:9]'), probe_split='train')


def test_every_variant_is_run_once_before_any_is_repeated():
    variants = (
        Variant('a', EXPERIMENT, seeds=(5,)),
        Variant('b', EXPERIMENT, seeds=(0, 1, 2)),
        Variant('c', EXPERIMENT),
    )
    found = Study('s', variants, seeds=(7, 8))
    assert [run.name for run in found.runs()] == ['a/5', 'b/0', 'c/7', 'b/1', 'c/8', 'b/2']
    assert [run.name for run in found.runs(['c', 'a'])] == ['a/5', 'c/7', 'c/8']
    assert [run.experiment.seed for run in found.runs()] == [5, 0, 7, 1, 8, 2]


def test_references_are_those_of_the_first_variant_unless_named():
    has = lambda s: [s.has_references(variant) for variant in s.variants]
    assert has(study('a', 'b')) == [True, False]
    assert has(study('a', 'b', references=('b',))) == [False, True]
    assert has(study('a', 'b', references=())) == [False, False]


def test_two_factors_span_a_grid_and_anything_else_does_not():
    def made(*factors):
        names = (f'v{i}' for i in range(len(factors)))
        return Study('s', tuple(Variant(n, EXPERIMENT, f) for n, f in zip(names, factors)))  # noqa: B905

    cell = lambda x, y: (('x', x), ('y', y))
    assert made(cell(2, 'u'), cell(1, 'u'), (), cell(2, 'w')).grid() == {
        'x': (2, 1),
        'y': ('u', 'w'),
    }
    assert made((), ()).grid() is None
    assert made((('x', 1),), (('x', 2),)).grid() is None
    assert made(cell(1, 2), (('x', 1), ('z', 2))).grid() is None


def test_a_cut_run_draws_the_images_asked_for_and_keeps_its_proportions():
    # 256 images, 16 a batch: 16 steps an epoch, 160 in all, 32 of them warmup.
    cut = lasting(EXPERIMENT, images=1280, examples=256)
    run = cut.run(256)
    assert run.steps * run.batch == 1280
    assert cut.optimizer.warmup_epochs * run.steps_per_epoch == pytest.approx(run.steps / 5)
    assert cut.method == EXPERIMENT.method and cut.recipe == EXPERIMENT.recipe
    # Looked at once: evaluations are due at multiples of this, and at the last step.
    assert cut.evaluation.every * run.steps_per_epoch > run.steps
    # Of 7,000 images a pass of whole batches drops some, which adds up.
    wide = lasting(dataclasses.replace(EXPERIMENT, batch=256), images=700_000, examples=7000)
    run = wide.run(7000)
    assert round(wide.evaluation.every * run.steps_per_epoch) > run.steps
    longer = lasting(cut, images=2560, examples=256)
    assert longer.optimizer == EXPERIMENT.optimizer and longer.steps == 160


def test_a_run_on_more_images_keeps_its_proportions_too():
    cut = lasting(EXPERIMENT, images=1280, examples=640)
    run = cut.run(640)
    assert cut.optimizer.warmup_epochs * run.steps_per_epoch == pytest.approx(run.steps / 5)


def test_everything_counted_in_epochs_is_cut():
    inner = SGD(decay='steps', milestones=(2.0, 4.0), frozen=(('head', 3.0), ('x', math.inf)))
    parts = (Part('head', inner),)
    optimizer = ByPath(default=AdamW(warmup_epochs=4.0), parts=parts)
    cut = lasting(dataclasses.replace(EXPERIMENT, optimizer=optimizer), 1280, 256).optimizer
    assert cut.default.warmup_epochs == 2.0
    assert cut.parts[0].optimizer.milestones == (1.0, 2.0)
    assert cut.parts[0].optimizer.frozen == (('head', 1.5), ('x', math.inf))


def test_a_method_is_cut_as_its_optimizer_is():
    method = DINO(teacher_temperature=Temperature(0.04, 0.07, epochs=6.0))
    cut = lasting(dataclasses.replace(EXPERIMENT, method=method), 1280, 256).method
    assert cut == dataclasses.replace(method, teacher_temperature=Temperature(0.04, 0.07, 3.0))


def test_a_smoke_study_is_on_made_images():
    small = study('a', 'b', probe_split='train[:100]').smoke()
    assert {v.experiment.data.name for v in small.variants} == {'made_images'}
    assert small.probe_split is None and small.variants[0].experiment.steps == 3


def test_files_without_a_study_are_refused(tmp_path, monkeypatch):
    file = tmp_path / 'x.py'
    file.write_text('def config(): pass')
    with pytest.raises(ValueError, match=r'no function study\(\) -> Study'):
        load_study(file)
    file.write_text('def study(): return 3')
    with pytest.raises(ValueError, match='returns int, not Study'):
        load_study(file)
    with pytest.raises(ValueError, match='no study file'):
        load_study(tmp_path / 'y.py')
