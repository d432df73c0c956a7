"""What surrounds the iterations: the bar on a terminal, and W&B, which may fail and mirrors one run over all resumptions."""

import io
from types import SimpleNamespace

import pytest
from routing import config, random_model

from fsframework.train.learned_callbacks import Bar
from fsframework.train.learned_fit import learn

pytestmark = [
    pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning"),
    pytest.mark.filterwarnings("ignore:Found 1 module"),
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


MODULE = SimpleNamespace(num_steps=5, stage="l2c")


def resumed_at_three(stderr, monkeypatch):
    """The bar of a training that goes on at iteration 3 of 5 and does one, with a loss of 0.25."""
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("COLUMNS", "120")
    bar, trainer = Bar(), SimpleNamespace(is_global_zero=True, global_step=3)
    bar.on_train_start(trainer, MODULE)
    bar.on_train_batch_end(trainer, MODULE, {"loss": 0.25})
    trainer.global_step = 4
    return bar, trainer


def test_the_bar_begins_where_the_checkpoint_is_and_shows_the_loss(monkeypatch):
    terminal = Terminal()
    bar, trainer = resumed_at_three(terminal, monkeypatch)
    bar.on_train_end(trainer, MODULE)
    text = terminal.getvalue()
    assert "l2c:" in text
    assert "3/5" in text
    assert "4/5" in text
    assert "loss=0.25" in text


def test_without_a_terminal_there_is_no_bar_and_an_interrupt_says_how_to_go_on(monkeypatch):
    file = io.StringIO()
    bar, trainer = resumed_at_three(file, monkeypatch)
    assert file.getvalue() == ""
    bar.on_exception(trainer, MODULE, KeyboardInterrupt())
    assert "stopped after 4 of 5 iterations; the same command goes on from the last checkpoint." in file.getvalue()


class FakeRun:
    """In place of W&B's run; fails where it is told to."""

    def __init__(self, fails_in=""):
        self.fails_in, self.rows, self.summary, self.artifacts = fails_in, [], {}, []

    def log(self, row, **_):
        if self.fails_in == "log":
            raise BrokenPipeError("gone")
        self.rows.append(row)

    def log_artifact(self, path, name, type):
        if self.fails_in == "log_artifact":
            raise BrokenPipeError("gone")
        self.artifacts.append((path, name, type))


def begun(monkeypatch, run):
    """Have `wandb.init` give `run`; the list of what it was called with."""
    given = []

    def init(**options):
        if run.fails_in == "init":
            raise OSError("no network")
        given.append(options)
        return run

    monkeypatch.setattr("wandb.init", init)
    return given


def test_wandb_gets_rows_numbers_and_the_artifact_and_a_training_given_again_is_the_same_run(tmp_path, monkeypatch):
    run, model = FakeRun(), random_model()
    given = begun(monkeypatch, run)
    learned = learn(config(tmp_path / "one", wandb="offline"), model)
    assert [row["trainer/global_step"] for row in run.rows if "l2c/loss" in row] == [1, 2]
    assert run.summary == dict(learned.fit.numbers)
    assert run.artifacts == [(str(learned.artifact), "l2c", "policy")]
    assert given[0]["config"]["learning_rate"] == 0.1
    learn(config(tmp_path / "one", wandb="offline"), model)
    learn(config(tmp_path / "two", wandb="offline"), model)
    first, again, other = (options["id"] for options in given)
    assert first == again != other
    assert given[0]["resume"] == "allow"


@pytest.mark.slow
@pytest.mark.parametrize("fails_in", ["init", "log", "log_artifact"])
def test_wandb_that_fails_loses_no_training(tmp_path, monkeypatch, fails_in):
    begun(monkeypatch, FakeRun(fails_in))
    with pytest.warns(UserWarning, match="no network" if fails_in == "init" else "gone"):
        learned = learn(config(tmp_path, wandb="offline"), random_model())
    assert learned.artifact.is_file()
    assert learned.cost["iterations"] == 2
    assert len(learned.metrics.read_text().splitlines()) == 2
