"""What is said and tried before Ray runs anything; a Ray of a few lines stands in. The real one: test_ablation_processes.py."""

import signal
import subprocess
import types
from dataclasses import dataclass

import pytest

from fsframework.config.grid import Executor, Resources
from fsframework.run import ablation_ray as module


class FakeRay(types.SimpleNamespace):
    """Starts after `failures` attempts, on a machine of 4 CPUs and 1 GPU."""

    def __init__(self, failures=0):
        super().__init__(failures=failures, started=[], halves=[], num_shutdowns=0)

    def init(self, **options):
        self.started.append(options)
        if len(self.started) <= self.failures:
            self.halves.append(subprocess.Popen(["sleep", "600"]))
            raise Exception("The current node timed out during startup.\nmore")

    def shutdown(self):
        self.num_shutdowns += 1

    def cluster_resources(self):
        return {"CPU": 4.0, "GPU": 1.0}


@dataclass
class FakeCell:
    """What is looked at of a planned cell."""

    resources: Resources
    label: str = "large"

    @property
    def cell(self):
        return self


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_ray_of_our_own_that_does_not_start_in_time_is_started_again():
    ray = FakeRay(failures=1)
    module._init(ray, Executor(name="ray", jobs=3, num_cpus=2))
    assert len(ray.started) == 2
    assert ray.num_shutdowns == 1
    assert [half.wait(10) for half in ray.halves] == [-signal.SIGKILL]  # what came up of it is not left running
    assert ray.started[-1]["num_cpus"] == 6  # three cells of two
    assert ray.started[-1]["include_dashboard"] is False


def test_a_ray_that_never_starts_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"^could not start ray here: The current node timed out during startup\.$"):
        module._init(FakeRay(failures=9), Executor(name="ray"))


def test_a_cluster_that_can_not_be_reached_is_tried_once_and_gets_no_options_of_a_local_one():
    ray = FakeRay(failures=9)
    with pytest.raises(ValueError, match=r"could not reach ray at node0:6379: The current node timed out"):
        module._init(ray, Executor(name="ray", address="node0:6379"))
    assert [sorted(options) for options in ray.started] == [["address", "log_to_driver", "logging_level"]]


def test_a_cell_that_needs_more_than_this_machine_has_is_refused_instead_of_waited_for():
    ray = FakeRay()
    module._check_room(ray, [FakeCell(Resources(4, 1))], Executor(name="ray"))
    with pytest.raises(ValueError, match=r"cell 'large' needs 1 CPUs and 2 GPUs; this machine has 4 and 1"):
        module._check_room(ray, [FakeCell(Resources(1, 2))], Executor(name="ray"))
    module._check_room(ray, [FakeCell(Resources(1, 2))], Executor(name="ray", address="auto"))  # a cluster may grow


@pytest.mark.parametrize(
    ("need", "at_once"),
    [(Resources(1), 4), (Resources(2), 2), (Resources(1, 0.5), 2), (Resources(0.5, 1), 1), (Resources(8), 1)],
)
def test_as_many_cells_run_at_once_as_fit_by_cpus_and_gpus(need, at_once):
    assert module._num_at_once(FakeRay(), need) == at_once
