"""What a person sees of a run: a bar on a terminal, plain lines in a file."""

import io
import os
import re
import sys
import threading

import pytest

from ssljax.train.progress import reporter

VALUES = {'loss': 4.6, 'knn_top1': 0.83, 'linear_top1': 0.85, 'images/s': 1049.0, 'other': 1.0}


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns, and what was written to it, once it is closed."""
    ours, theirs = os.openpty()
    monkeypatch.setenv('COLUMNS', '80')
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.delenv('NO_COLOR', raising=False)
    written, screen = [], os.fdopen(theirs, 'w')

    def read():
        try:
            while data := os.read(ours, 4096):
                written.append(data)
        except OSError:  # the other end is closed
            pass

    reading = threading.Thread(target=read)
    reading.start()

    def closed():
        screen.close()
        reading.join()
        os.close(ours)
        return b''.join(written).decode()

    return screen, closed


def test_a_bar_of_80_columns_holds_steps_time_left_and_every_measure(terminal, monkeypatch):
    screen, closed = terminal
    monkeypatch.setattr(sys, 'stdout', screen)
    with reporter(1080, start=540) as show:
        show.show(600, VALUES, 30.0)
        show.say('a line of its own')
    seen = closed()
    plain = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', seen)
    last = [line for line in re.split('[\r\n]+', plain) if line][-2:]
    assert '600/1080' in last[0] and ':' in last[0] and '━' in last[0]
    for shown in ('loss 4.600', 'knn_top1 0.830', 'linear_top1 0.850', 'images/s 1049'):
        assert shown in last[1]
    assert 'a line of its own' in seen and 'other' not in seen and '…' not in seen


def test_a_file_gets_a_plain_line_every_ten_seconds_and_at_the_end(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, 'stdout', file)
    with reporter(30) as show:
        for step in range(1, 31):
            show.show(step, {'loss': 1 / step}, float(step))
    assert file.getvalue().splitlines() == [
        'step 1/30  loss 1.000  1 s',
        'step 11/30  loss 0.091  11 s',
        'step 21/30  loss 0.048  21 s',
        'step 30/30  loss 0.033  30 s',
    ]
