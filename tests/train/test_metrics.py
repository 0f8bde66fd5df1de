"""metrics.jsonl of a resumed run is that of a run never interrupted, but for its clock."""

import contextlib
import json
import logging
import math
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.train import metrics
from ssljax.train.metrics import MetricsWriter, read, without_clock


def run(folder, resume, steps, seconds=1.0):
    """Writes a line for each of `steps`, as a run resumed at `resume` would."""
    with contextlib.closing(MetricsWriter(folder, resume)) as writer:
        for step in steps:
            writer.write({'step': step, 'loss': 1 / step, 'clock': {'seconds': seconds * step}})


def lines(folder):
    return (folder / metrics.NAME).read_text().splitlines()


def test_a_line_opens_with_its_step_and_is_there_before_the_file_is_closed(tmp_path):
    writer = MetricsWriter(tmp_path / 'new', None)
    writer.write({'loss': 0.5, 'clock': {'seconds': 2}, 'step': 1})
    assert lines(tmp_path / 'new') == ['{"step": 1, "loss": 0.5, "clock": {"seconds": 2}}']
    writer.close()
    writer.close()


def test_floats_come_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    values = [struct.unpack('d', rng.bytes(8))[0] for _ in range(200)]
    values = [v for v in values if math.isfinite(v)] + [0.1, -0.0, 5e-324, 1.7976931348623157e308]
    with contextlib.closing(MetricsWriter(tmp_path, None)) as writer:
        writer.write({'step': 1, 'values': values})
    (record,) = read(tmp_path)
    assert [struct.pack('d', v) for v in record['values']] == [struct.pack('d', v) for v in values]


def test_scalars_of_any_make_are_plain_numbers(tmp_path):
    record = {
        'step': np.int64(3),
        'a': jnp.float32(0.1),
        'b': np.float32(0.1),
        'c': jnp.bfloat16(1.5),
        'd': np.ones((1,)),
        'e': jax.numpy.int32(7),
        'f': {'g': np.bool_(True), 'h': ('x', None)},
    }
    with contextlib.closing(MetricsWriter(tmp_path, None)) as writer:
        writer.write(record)
    single = 0.10000000149011612
    assert read(tmp_path) == [
        {'step': 3, 'a': single, 'b': single, 'c': 1.5, 'd': 1.0, 'e': 7}
        | {'f': {'g': True, 'h': ['x', None]}}
    ]


def test_what_is_not_finite_is_text_in_valid_json(tmp_path):
    with contextlib.closing(MetricsWriter(tmp_path, None)) as writer:
        writer.write({'step': 1, 'a': math.nan, 'b': math.inf, 'c': np.float32(-np.inf)})

    def refuse(name):
        raise AssertionError(f'{name} is not JSON')

    record = json.loads(lines(tmp_path)[0], parse_constant=refuse)
    assert record == {'step': 1, 'a': 'nan', 'b': 'inf', 'c': '-inf'}
    assert float(record['b']) == math.inf


def test_a_resumed_run_leaves_the_lines_of_an_undisturbed_one(tmp_path):
    run(tmp_path / 'whole', None, range(1, 11))
    run(tmp_path / 'broken', None, range(1, 8))
    run(tmp_path / 'broken', 4, range(5, 11), seconds=3.0)
    assert read(tmp_path / 'whole') != read(tmp_path / 'broken')
    assert without_clock(read(tmp_path / 'whole')) == without_clock(read(tmp_path / 'broken'))
    run(tmp_path / 'broken', None, range(1, 3))
    assert [r['step'] for r in read(tmp_path / 'broken')] == [1, 2]


@pytest.mark.parametrize('resume', [2, 3, 9])
def test_a_last_line_cut_at_any_byte_does_no_harm(tmp_path, resume):
    run(tmp_path, None, range(1, 4))
    path = tmp_path / metrics.NAME
    whole = path.read_bytes()
    start = whole.rindex(b'\n', 0, -1) + 1
    expected = read(tmp_path)
    for length in range(start, len(whole)):
        path.write_bytes(whole[:length])
        complete = 3 if length == len(whole) - 1 else 2  # only the line's end is missing
        assert read(tmp_path) == expected[:complete]
        run(tmp_path, resume, [10])
        assert [r['step'] for r in read(tmp_path)] == [*range(1, min(resume, complete) + 1), 10]


def test_bytes_that_are_no_text_at_the_end_do_no_harm(tmp_path):
    run(tmp_path, None, range(1, 4))
    with (tmp_path / metrics.NAME).open('ab') as f:
        f.write(b'\x00\xff' * 100)
    assert len(read(tmp_path)) == 3
    run(tmp_path, 3, [4])
    assert [r['step'] for r in read(tmp_path)] == [1, 2, 3, 4]


def test_a_spoilt_line_in_the_middle_is_told(tmp_path, caplog):
    run(tmp_path, None, range(1, 4))
    path = tmp_path / metrics.NAME
    path.write_text(path.read_text().replace('"step": 2', '"step": '))
    with pytest.raises(ValueError, match=r'metrics\.jsonl, line 2, is not JSON'):
        read(tmp_path)
    with caplog.at_level(logging.WARNING):
        run(tmp_path, 3, [4])
    assert 'line 2 is not JSON and is dropped' in caplog.text
    assert [r['step'] for r in read(tmp_path)] == [1, 3, 4]


def test_cutting_back_is_all_or_nothing(tmp_path, monkeypatch):
    run(tmp_path, None, range(1, 6))
    before = lines(tmp_path)

    def killed(descriptor):
        raise InterruptedError

    monkeypatch.setattr(os, 'fsync', killed)
    with pytest.raises(InterruptedError):
        MetricsWriter(tmp_path, 2)
    assert lines(tmp_path) == before
    monkeypatch.undo()
    MetricsWriter(tmp_path, 2).close()
    assert lines(tmp_path) == before[:2]
    assert [path.name for path in tmp_path.iterdir()] == [metrics.NAME]


def test_without_a_file_there_are_no_records(tmp_path):
    assert read(tmp_path) == []


@pytest.mark.parametrize(
    ('record', 'reason'),
    [
        ({'loss': 1.0}, 'needs `step`'),
        ({'step': 1.5}, 'needs `step`'),
        ({'step': 1, 'z': np.zeros((2, 3))}, r'z is an array of shape \(2, 3\)'),
    ],
)
def test_what_is_no_line_is_refused(tmp_path, record, reason):
    with (
        contextlib.closing(MetricsWriter(tmp_path, None)) as writer,
        pytest.raises(ValueError, match=reason),
    ):
        writer.write(record)


def test_where_appending_is_impossible_the_file_is_written_anew_now_and_then(tmp_path, monkeypatch):
    run(tmp_path, None, range(1, 6))
    monkeypatch.setattr(metrics, '_can_append', lambda path: False)
    now = [0.0]
    monkeypatch.setattr(metrics.time, 'monotonic', lambda: now[0])
    writer = MetricsWriter(tmp_path, 2)
    assert [r['step'] for r in read(tmp_path)] == [1, 2]
    writer.write({'step': 3})
    assert [r['step'] for r in read(tmp_path)] == [1, 2]
    now[0] = metrics.REWRITE_SECONDS + 1
    writer.write({'step': 4})
    assert [r['step'] for r in read(tmp_path)] == [1, 2, 3, 4]
    writer.write({'step': 5, 'name': 'x' * 2**21})  # two MiB are to wait twice as long
    now[0] *= 2
    writer.write({'step': 6})
    now[0] += 1.5 * metrics.REWRITE_SECONDS
    writer.write({'step': 7})
    assert len(read(tmp_path)) == 6
    now[0] += metrics.REWRITE_SECONDS
    writer.write({'step': 8})
    assert len(read(tmp_path)) == 8
    writer.write({'step': 9})
    writer.close()
    assert [r['step'] for r in read(tmp_path)] == list(range(1, 10))


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    run(tmp_path / 'run', None, range(1, 3))
    assert not (tmp_path / 'run').exists()
