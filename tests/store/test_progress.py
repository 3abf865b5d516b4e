import logging
import sys
from unittest import mock

import pytest

from unlearn.store import progress as module
from unlearn.store.progress import EVERY, Running, Stage, duration


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def running(monkeypatch):
    """Stages by a clock that the test moves, without the thread that looks at it."""
    monkeypatch.setattr(Running, "_watch", lambda self, ended: None)
    return Running(Clock())


@pytest.fixture
def said(running, caplog):
    caplog.set_level(logging.INFO)

    def after(seconds):
        """What is said in the next seconds, looked at second by second."""
        caplog.clear()
        for _ in range(seconds):
            running.clock.now += 1
            running.look()
        return caplog.messages

    return after


def test_work_that_is_soon_over_says_nothing_and_long_work_speaks_at_least_every_minute(running, said):
    with Stage(40, "npo offset α=1", "step", 0, running) as steps:
        assert said(int(EVERY) - 1) == []
        steps.update(2)
        assert said(1) == ["npo offset α=1: 2 of 40 steps, 15 s each, 9 min 30 s left"]
        assert said(210)[-1] == "npo offset α=1: 2 of 40 steps, 2 min 0 s each, 1 h 16 min left"
        assert len(said(600)) == 600 // EVERY >= 10


def test_many_short_stages_are_no_silence_either(running, said):
    lines = []
    for i in range(30):
        with Stage(3, f"split {i}", "row", 0, running):
            lines += said(4)
    assert lines[0] == "split 7: 0 of 3 rows, 2 s so far" and len(lines) == 120 // EVERY


@pytest.mark.parametrize(
    ("total", "done", "more", "line"),
    [
        (40, 0, 0, "x: 0 of 40 steps, 30 s so far"),
        (40, 0, 40, "x: 40 of 40 steps, 0.75 s each, 0 s left"),
        (40, 30, 5, "x: 35 of 40 steps, 6 s each, 30 s left"),  # resumed: what was done before cost nothing now
        (40_000, 0, 1, "x: 1 of 40,000 steps, 30 s each, 333 h 19 min left"),
        (None, 0, 0, "x: 30 s so far"),
    ],
)
def test_a_line_has_what_is_done_of_how_much_seconds_per_unit_and_the_time_left(total, done, more, line, running, said):
    with Stage(total, "x", "step", done, running) as stage:
        stage.update(more)
        assert said(30) == [line]


def test_a_line_names_the_stages_around_it_but_not_those_that_have_no_number(running, said):
    with (
        Stage(None, "run", "step", 0, running),
        Stage(4, "evaluating", "part", 0, running) as outer,
        Stage(None, "loading", "step", 0, running),
    ):
        outer.update()
        outer.note("forget")
        outer.more(1)
        assert said(30) == ["evaluating: 1 of 5 parts, 30 s each, 2 min 0 s left (forget); loading: 30 s so far"]


@pytest.mark.parametrize(("bars", "shown"), [(True, False), (False, True)])
def test_on_a_terminal_a_bar_stands_for_the_lines_which_the_log_file_has_in_any_case(
    bars, shown, running, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_bars", bars)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    terminal, file = logging.StreamHandler(mock.Mock(isatty=lambda: True)), logging.FileHandler(tmp_path / "log.txt")
    monkeypatch.setattr(logging.getLogger(), "handlers", [terminal, file])
    monkeypatch.setattr(module.log, "disabled", False)
    monkeypatch.setattr(module.log, "level", logging.INFO)
    with Stage(4, "x", "step", 0, running):
        running.clock.now += 30
        running.look()
    file.close()
    assert (tmp_path / "log.txt").read_text() == "x: 0 of 4 steps, 30 s so far\n"
    assert bool(terminal.stream.write.called) is shown


def test_the_thread_that_looks_ends_with_the_last_stage(monkeypatch):
    looked = mock.Mock()
    monkeypatch.setattr(module, "TICK", 0.0)
    running = Running()
    monkeypatch.setattr(running, "look", looked)
    with Stage(1, "x", "step", 0, running), Stage(1, "y", "step", 0, running):
        assert not running.ended.is_set()
        while not looked.called:
            pass
    assert running.ended.is_set()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599.9, "1 h 0 min"), (7260, "2 h 1 min")]
)
def test_durations_are_written_as_a_person_says_them(seconds, text):
    assert duration(seconds) == text
