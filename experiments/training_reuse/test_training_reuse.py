"""What the scripts promise; a run at toy size of each (random weights: it shows that they run, and nothing else)."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

HERE = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.chdir(HERE.parents[1])
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_orders_of_checkpoints_are_compared_pair_by_pair():
    from curves import pairs_agree

    assert pairs_agree([1, 2, 3], [1, 2, 3]) == (3, 0, 0)
    assert pairs_agree([1, 2, 3], [1, 3, 2]) == (2, 1, 0)
    assert pairs_agree([1, 2, 2], [1, 1, 3]) == (1, 0, 2)


def test_a_finished_arm_is_not_run_again(tmp_path):
    from arms import read_json, run_arms

    calls = []
    arms = {name: lambda name=name: (calls.append(name), {"x": len(calls)})[1] for name in ("a", "b")}
    run_arms(tmp_path, {"a": arms["a"]})
    run_arms(tmp_path, arms)
    assert calls == ["a", "b"]
    assert [read_json(tmp_path / f"{n}.json")["x"] for n in "ab"] == [1, 2]


def test_unknown_keys_are_refused():
    from arms import read
    from shared import QUICK, Config

    with pytest.raises(Exception, match="num_stepz"):
        read(Config, HERE / "shared.yaml", QUICK, ["num_stepz=3"])


def test_arms_cost_the_same_per_step_and_the_curve_says_what_was_spent(tmp_path):
    import shared
    from arms import read_json

    quick = ["--quick", f"results={tmp_path / 'results'}", f"runs={tmp_path / 'runs'}", "seeds=[0]", "batch_clips=24"]
    shared.main([*quick, "only=[ordinary,late]", "evaluate_every=2"])
    ordinary, late = (read_json(tmp_path / "results" / f"shared-opensora-{n}-seed0.json") for n in ("ordinary", "late"))
    assert ordinary["batch_clips"] == 24
    # Two forwards, the second without one of two layers, cost between once and twice as much per clip.
    assert 12 < late["batch_clips"] < 20
    assert late["forwards_per_step"] == 2 * late["batch_clips"]
    assert late["flops_per_step"] == pytest.approx(ordinary["flops_per_step"], rel=0.04)
    assert late["curve"][-1]["flops"] == 2 * late["flops_per_step"]
    losses = [late["curve"][-1][f"loss_at_{t}"] for t in (500, 800, 900, 975)]
    assert late["curve"][-1]["held_out_loss"] == pytest.approx(sum(losses) / 4)


def test_monitors_say_what_they_cost_and_how_far_off_they_are(tmp_path):
    import monitor
    from arms import read_json

    monitor.main(["--quick", f"results={tmp_path / 'results'}", f"runs={tmp_path / 'runs'}"])
    full, static = (read_json(tmp_path / "results" / f"monitor-opensora-a-{name}.json") for name in ("full", "static"))
    assert (full["share"], full["psnr"]) == (1.0, None)
    # The first step or two are warm-up; of the others every second is reused, which leaves 4 or 5 of 8 computed.
    assert 0.5 < static["share"] < 0.75
    # Videos of the untrained toy model do not depend on what is reused, so there is no error to look at: PSNR has no value.
    assert static["psnr"] is None
    assert len(static["clips"]["digit"]) == 2


def test_student_learns_from_points_of_the_teachers_trajectory(tmp_path):
    import distill
    from arms import read, read_json

    arguments = ["--quick", f"results={tmp_path / 'results'}", f"runs={tmp_path / 'runs'}"]
    distill.main(arguments)
    full, reuse, same = (
        read_json(tmp_path / "results" / f"distill-{n}-seed0.json") for n in ("full", "reuse", "reuse_same_flops")
    )
    assert full["num_trajectories"] == reuse["num_trajectories"] == 2
    assert reuse["teacher_flops"] < 0.8 * full["teacher_flops"]
    assert reuse["num_trajectories"] <= same["num_trajectories"]
    assert same["teacher_flops"] <= full["teacher_flops"]
    assert [p["step"] for p in full["curve"]] == [1, 2]
    assert full["curve"][1]["flops"] == pytest.approx(full["teacher_flops"] + 2 * full["flops_per_step"])

    config = read(distill.Config, HERE / "distill.yaml", distill.QUICK, arguments)
    latents, prompts, _ = torch.load(next(Path(config.runs).glob("trajectories-full-*-0.pt")))
    assert latents.shape == (1, 3, 12, 5, 8, 8)  # noise, after 4 of 8 steps, after 8
    assert prompts == ["digit 0 is moving up and down"]


class PowerCut(BaseException):
    """Nothing catches it."""


SCRIPTS = {
    "shared": ("shared-opensora-late-seed0", ["only=[late]"]),
    "distill": ("distill-full-seed0", []),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_arm_killed_while_it_trains_goes_on_from_its_checkpoint_bit_for_bit(tmp_path, monkeypatch, script):
    import distill
    import shared
    from arms import read_json

    from fsframework.train.shared_blocks import SharedBlocksStage

    module = {"shared": shared, "distill": distill}[script]
    stage_class = {"shared": SharedBlocksStage, "distill": distill.StepDistillation}[script]
    arm, options = SCRIPTS[script]
    config = tmp_path / "distill.yaml"
    config.write_text("teachers: {full: {policy: {name: full}}}")
    fit, loss, steps = module.fit, stage_class.loss, []

    def fit_with_checkpoints(stage, tiny, directory):
        tiny.checkpoint_minutes = 0.0  # after every step
        return fit(stage, tiny, directory)

    def run(folder, killed_at=None):
        def counted(stage, step):
            if stage._trainer is not None:  # else its FLOPs are counted
                if step == killed_at:
                    raise PowerCut
                steps.append(step)
            return loss(stage, step)

        monkeypatch.setattr(stage_class, "loss", counted)
        folders = [f"results={tmp_path / folder / 'results'}", f"runs={tmp_path / folder / 'runs'}"]
        source = [str(config)] if script == "distill" else []
        module.main([*source, "--quick", *options, *folders, "num_steps=5", "seeds=[0]"])

    monkeypatch.setattr(module, "fit", fit_with_checkpoints)
    run("whole")
    for killed_at in (2, 4):
        with pytest.raises(PowerCut):
            run("killed", killed_at)
        assert not (tmp_path / "killed" / "results" / f"{arm}.json").exists()
    torch.manual_seed(1234)  # the global random state is no part of a run
    run("killed")
    assert steps == [0, 1, 2, 3, 4] * 2, "each step once, then each once again: none is done twice after a kill"
    results, weights = [], []
    for folder in ("whole", "killed"):
        results.append({**read_json(tmp_path / folder / "results" / f"{arm}.json"), "cpu_seconds": None})
        (checkpoint,) = (tmp_path / folder / "runs").glob("*/*.ckpt")
        weights.append(torch.load(checkpoint, weights_only=False)["state_dict"])
    assert results[0] == results[1]
    assert len(results[0]["curve"]) == 5
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_tables_and_pictures_of_what_is_there(tmp_path, capsys):
    import curves
    from arms import write_json

    losses = {f"loss_at_{t}": 0.5 for t in (500, 800, 900, 975)}
    curve = [
        {"step": s, "flops": s * 1e10, "held_out_loss": 1 / s, "frame_digit_accuracy": 0.1 * s, **losses}
        for s in (1, 2)
    ]
    for arm in ("ordinary", "late"):
        name = f"shared-opensora-{arm}-seed0"
        result = {
            "arm": name,
            "family": "opensora",
            "seed": 0,
            "batch_clips": 64,
            "num_steps": 2,
            "flops_per_step": 1e10,
        }
        write_json(tmp_path / f"{name}.json", {**result, "curve": curve})
    curves.main(str(tmp_path), str(tmp_path))
    assert (
        "| opensora-late-seed0 | 64 | 10.0 | 2 | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 | 0.200 |"
        in capsys.readouterr().out
    )
    picture = (tmp_path / "shared-opensora.svg").read_text()
    words = [element.text for element in ElementTree.fromstring(picture).iter() if element.text]
    assert "TFLOPs of training" in words
    assert "late" in words
