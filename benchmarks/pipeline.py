"""The input pipeline against bare decode-and-crop, at 224 px with two views; and at 32 px.

    python benchmarks/pipeline.py

At 224 px: SimCLR's host half (random resized crop, flip) through `ssljax.data.pipeline` on 500 x
375 JPEGs cut from scikit-learn's sample images, against the same parallel map with nothing but
decode-and-crop and the same resize, its windows drawn beforehand. Goal: at least 85% of its rate,
the median over repetitions of the ratio by the clock. The pipeline decodes an image once for both
views, so it is also set against a bare map that does. These take turns in one run. `per cpu-s` is
images by second of processor time, which other work on the machine disturbs less than the rate.
Where torchvision is installed, PyTorch's `DataLoader` makes the same views, afterwards and in a
process of its own (`torchvision_loader.py`), so that it has a rate by the clock alone: crop and
flip against our host half, and the whole recipe against both our halves on these cores (on an
accelerator the second half costs them nothing).
"""

import argparse
import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from provenance import header

from ssljax.core import with_keys
from ssljax.data.graph import cores, tensorflow
from ssljax.data.pipeline import Stream, batches
from ssljax.data.registry import open_source
from ssljax.views import host
from ssljax.views.simclr import SimCLRViews

FILES, BATCH, SIZE = 512, 64, 224
BARE, GOAL = 'bare decode-and-crop', 0.85
SETTLES = 0.7
OURS, WHOLE = 'ssljax', 'ssljax, both halves'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repetitions', type=int, default=7)
    parser.add_argument('--batches', type=int, default=10, help='batches a repetition')
    options = parser.parse_args()
    print(header())
    with tempfile.TemporaryDirectory() as folder:
        write_photos(pathlib.Path(folder))
        print(f'\n{SIZE} px, two views, 500 x 375 JPEGs, batch {BATCH}')
        rates = measure(
            {
                BARE: bare(folder, once=False),
                'bare decode once, slice': bare(folder, once=True),
                OURS: ours(f'folder:{folder}', SimCLRViews(size=SIZE)),
                WHOLE: whole(f'folder:{folder}', SimCLRViews(size=SIZE)),
            },
            options,
        )
        for recipe, against in (('crop', OURS), ('simclr', WHOLE)):
            rates |= torch_loader(folder, options, recipe)
            name = f'torchvision, {recipe}'
            if name in rates:
                print(f'{against} / {name}: {compare(rates[against], rates[name], False)}')
        for other in (BARE, 'bare decode once, slice'):
            print(f'{OURS} / {other}: {compare(rates[OURS], rates[other], other == BARE)}')
    for name, size, view in small_sets():
        print(f'\n{name}, {size} px, two views, batch {BATCH * 4}')
        measure({OURS: ours(name, view, BATCH * 4)}, options)


def write_photos(folder: pathlib.Path):
    from PIL import Image
    from sklearn.datasets import load_sample_images

    images, rng = load_sample_images().images, np.random.default_rng(0)
    for number in range(FILES):
        image = images[number % len(images)]
        top, left = rng.integers(0, [image.shape[0] - 374, image.shape[1] - 499])
        window = image[top : top + 375, left : left + 500]
        Image.fromarray(window).save(folder / f'{number:04}.jpg', quality=90)


def ours(name, recipe, batch=BATCH):
    split = 'train' if name.startswith('folder') else 'train[:90%]'
    stream = batches(open_source(name, split), recipe, Stream(batch, 0))
    return (len(one['index']) for one in stream)


def whole(name, recipe):
    """The device half as well, on the CPU."""
    on_device = jax.jit(recipe.on_device)
    for batch in batches(open_source(name, 'train'), recipe, Stream(BATCH, 0)):
        keyed = with_keys({k: jnp.asarray(v) for k, v in batch.items()}, jax.random.key(0))
        jax.block_until_ready(on_device(keyed))
        yield len(batch['index'])


def bare(folder, once):
    """What no pipeline could leave out: read, decode, cut, resize."""
    tf = tensorflow()
    crop = SimCLRViews(size=SIZE).random_crop()
    files = tf.constant(sorted(str(file) for file in pathlib.Path(folder).glob('*.jpg')))
    draws = tf.random.stateless_uniform([FILES * 2, host.DRAWS - 1], [0, 0])
    windows = host.sample_windows(tf.constant(375), tf.constant(500), draws, crop)
    windows = tf.reshape(windows, [FILES, 2, 4])
    dct = 'INTEGER_ACCURATE'

    def views(number):
        data, cuts = tf.io.read_file(files[number % FILES]), windows[number % FILES]
        if once:
            pixels = tf.io.decode_jpeg(data, 3, dct_method=dct)
            sides = [tf.unstack(cuts[k]) for k in (0, 1)]
            parts = [pixels[top : top + h, left : left + w] for top, left, h, w in sides]
        else:
            parts = [
                tf.image.decode_and_crop_jpeg(data, cuts[k], 3, dct_method=dct) for k in (0, 1)
            ]
        return host.to_uint8(tf.concat([crop.resize(part) for part in parts], 0))

    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = cores()
    options.threading.max_intra_op_parallelism = 1
    data = tf.data.Dataset.range(2**40).map(views, cores()).batch(BATCH).prefetch(2)
    return (len(one) for one in data.with_options(options).as_numpy_iterator())


def torch_loader(folder, options, recipe):
    """The rates of the usual loader with the same views, if there is one; none by CPU time."""
    if not (importlib.util.find_spec('torch') and importlib.util.find_spec('torchvision')):
        print('torchvision not installed: its loader is left out')
        return {}
    script = pathlib.Path(__file__).with_name('torchvision_loader.py')
    counts = (f'--repetitions={options.repetitions}', f'--batches={options.batches}')
    sizes = (f'--size={SIZE}', f'--batch={BATCH}', f'--recipe={recipe}')
    command = [sys.executable, str(script), folder, *counts, *sizes]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if told.returncode:
        print('torchvision is installed but does not run (its build must fit that of torch)')
        return {}
    rates = np.array([[float(rate), np.nan] for rate in told.stdout.split()])
    name = f'torchvision, {recipe}'
    print(f'{name:24} {np.median(rates[:, 0]):7.0f} images/s')
    return {name: rates}


def small_sets():
    grey = {'saturation': 0.0, 'hue': 0.0, 'gray': 0.0, 'mean': (0.5,), 'std': (0.25,)}
    yield 'fashion_mnist_10k', 28, SimCLRViews(size=28, **grey)
    try:
        open_source('cifar10', 'train')
    except ValueError as error:
        print(f'\ncifar10 is left out: {error}')
        return
    yield 'cifar10', 32, SimCLRViews(size=32, strength=0.5, blur=0.0)


def compare(ours, theirs, has_goal):
    """The ratios in words, and whether the goal is met where there is one."""
    clock, cpu = np.median(ours / theirs, 0)
    said = f'{clock:.2f} by the clock'
    if np.isfinite(cpu):
        said += f', {cpu:.2f} by cpu time'
    if has_goal:
        said += f' (goal: at least {GOAL}: {"met" if clock >= GOAL else "MISSED"})'
    return said


def measure(streams, options):
    """Rates of each, [repetitions, 2]: images by second, and by second of processor time."""
    rates = {name: [] for name in streams}
    for stream in streams.values():
        drain(stream, 4)
    for _ in range(options.repetitions):
        for name, stream in streams.items():
            time.sleep(SETTLES)  # while the one before fills its buffers again, on the same cores
            drain(stream, 4)  # what was made ahead while others had their turn
            clock, cpu = time.perf_counter(), time.process_time()
            images = drain(stream, options.batches)
            spent = time.perf_counter() - clock, time.process_time() - cpu
            rates[name].append([images / spent[0], images / spent[1]])
    rates = {name: np.array(rate) for name, rate in rates.items()}
    for name, rate in rates.items():
        by_clock, by_cpu = np.median(rate, 0)
        print(f'{name:24} {by_clock:7.0f} images/s {by_cpu:7.0f} per cpu-s')
    return rates


def drain(stream, count):
    return sum(next(stream) for _ in range(count))


if __name__ == '__main__':
    main()
