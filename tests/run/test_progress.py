import io
import warnings

import pytest

from fsframework.core.engine import ReuseWarning
from fsframework.run.progress import Progress, reuse_warnings_as_notes


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_there_is_one_line_per_video(capsys):
    progress = Progress("static", total=3, done=1)
    progress.stage("full compute")
    progress.advance("'a cat' seed 1: 2.0 s")
    progress.close()
    assert capsys.readouterr().err == "static 2/3: 'a cat' seed 1: 2.0 s\n"


def test_on_a_terminal_there_is_a_bar_with_the_time_left_that_counts_finished_videos(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    progress = Progress("static", total=4, done=2)
    progress.stage("full compute")
    progress.advance("")
    progress.close()
    text = terminal.getvalue()
    assert "2/4 videos" in text
    assert "full compute" in text
    assert "3/4 videos" in text
    assert " left" in text


def test_a_reuse_warning_is_a_note_once_and_other_warnings_stay_warnings(capsys):
    progress = Progress("static", total=1, done=0)
    with pytest.warns(RuntimeWarning, match="other"), reuse_warnings_as_notes(progress):
        for _ in range(2):
            warnings.warn("nothing was reused", ReuseWarning, stacklevel=1)
        warnings.warn("other", RuntimeWarning, stacklevel=1)
    assert progress.notes == ["nothing was reused"]
    assert capsys.readouterr().err == "note: nothing was reused\n"


def test_other_processes_keep_notes_and_show_nothing(capsys):
    progress = Progress("static", total=1, done=0, quiet=True)
    progress.note("something")
    progress.advance("x")
    assert capsys.readouterr().err == ""
    assert progress.notes == ["something"]
