"""Progress: a bar on a terminal, lines in a log, silence when asked, and never a byte on stdout."""

import io

import pytest

from vbjax.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def rows(steps):
    for step in range(10, steps + 1, 10):
        yield {
            "step": step,
            "loss": 95.125,
            "kl": 20.5,
            "steps_per_second": 100.0,
            "examples_per_second": 12_800.0,
            "seconds": 0.1 * step,
            "seconds_left": 0.1 * (steps - step),
        }


def shown(stream, **settings):
    with Progress(1000, stream=stream, **settings) as progress:
        for row in rows(1000):
            progress.update(row)
    return stream.getvalue()


def test_a_log_gets_the_first_line_one_now_and_then_and_the_last(capsys):
    lines = shown(io.StringIO(), seconds_between_lines=3600).splitlines()
    assert [line.split()[1] for line in lines] == ["10/1000", "1000/1000"]
    assert "loss 95.12  kl 20.5  12,800 examples/s  1:39 min left" in lines[0]
    assert len(shown(io.StringIO(), seconds_between_lines=0).splitlines()) == 100
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("pace", "said"), [(0.0312, "0.031"), (3.25, "3.2"), (12.6, "13")])
def test_a_slow_pace_is_not_rounded_to_nothing(pace, said):
    stream = io.StringIO()
    with Progress(10, stream=stream, unit="mutations") as progress:
        progress.update({"step": 1, "mutations_per_second": pace, "seconds_left": 7})
    assert f" {said} mutations/s  7 s left" in stream.getvalue()


def test_a_terminal_gets_a_live_bar(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text = shown(Terminal())
    assert "1000/1000" in text
    assert "\x1b[" in text
    assert capsys.readouterr() == ("", "")


def test_quiet_shows_nothing_anywhere(capsys):
    assert shown(io.StringIO(), quiet=True) == shown(Terminal(), quiet=True) == ""
    assert capsys.readouterr() == ("", "")


def test_the_default_stream_leaves_stdout_to_results(capsys):
    with Progress(10) as progress:
        progress.update(next(rows(10)))
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 10/10" in err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (185, "3:05 min"), (7620, "2:07 h")],
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text
