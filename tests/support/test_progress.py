"""Progress where no terminal shows a bar."""

import io
from types import SimpleNamespace

from rich.console import Console

from lit_debias.support import progress
from lit_debias.support.progress import Lines, bars


def run(seconds: list[float], monkeypatch, terminal: bool = False) -> str:
    """Return what a work of as many parts prints that are over at these seconds."""
    clock = iter([0.0, *seconds])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    out = io.StringIO()
    with bars(Console(file=out, width=80, force_terminal=terminal)) as start:
        advance = start("before [a]", len(seconds))
        for _ in seconds:
            advance(1)
    return out.getvalue()


def test_a_file_gets_a_line_every_twenty_seconds(monkeypatch):
    lines = [line for line in run([1.0, 19.0, 21.0, 39.0, 42.0], monkeypatch).splitlines() if ": " in line]
    assert lines == ["before [a]: 3/5", "before [a]: 5/5"]


def test_a_terminal_gets_a_bar_alone(monkeypatch):
    assert "before [a]: " not in run([30.0, 60.0], monkeypatch, terminal=True)


def test_lines_of_two_works_do_not_wait_for_each_other(monkeypatch):
    times = iter([0.0, 0.0, 25.0, 26.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(times)))
    console = Console(file=io.StringIO(), force_terminal=False)
    first, second = Lines(), Lines()
    assert first.due(console)
    assert second.due(console)
