"""The sampler of a run: chosen by `sampling.scheduler`, recorded in metrics.json, compared with `--by scheduler`."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from fsframework.config.grid import load_ablation
from fsframework.config.load import load_config
from fsframework.run.compare import Options, compare
from fsframework.run.job import pixels_of, prepare
from fsframework.run.launch import World
from fsframework.run.resolve import make_plan, sampling_of
from fsframework.run.runner import run
from fsframework.run.sampler import describe, scheduler_class, with_scheduler


def chosen(*overrides):
    return load_config(None, overrides).sampling.scheduler


def test_a_scheduler_is_a_name_or_a_name_with_options_and_another_name_drops_the_options_before():
    assert chosen() is None
    assert chosen("sampling.scheduler=DDIMScheduler") == {"name": "DDIMScheduler"}
    first = "sampling.scheduler={name: DDIMScheduler, timestep_spacing: leading}"
    assert chosen(first) == {"name": "DDIMScheduler", "timestep_spacing": "leading"}
    assert chosen(first, "sampling.scheduler.steps_offset=1") == {**chosen(first), "steps_offset": 1}
    assert chosen(first, "sampling.scheduler.name=DDPMScheduler") == {"name": "DDPMScheduler"}
    assert chosen(first, "sampling.scheduler=null") is None
    with pytest.raises(ValueError, match="sampling.scheduler needs a name"):
        chosen("sampling.scheduler.timestep_spacing=leading")
    with pytest.raises(ValueError, match="sampling.scheduler must be a scheduler, such as .* found 3"):
        chosen("sampling.scheduler=3")


def test_a_grid_varies_the_scheduler_and_a_new_name_has_none_of_the_bases_options(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(
        "base: {sampling: {scheduler: {name: DDIMScheduler, set_alpha_to_one: false}}}\n"
        "grid: {sampling.scheduler.name: [DDIMScheduler, EulerDiscreteScheduler]}\n"
    )
    found = [cell.config.sampling.scheduler for cell in load_ablation(file).cells]
    assert found == [{"name": "DDIMScheduler", "set_alpha_to_one": False}, {"name": "EulerDiscreteScheduler"}]


def test_an_unknown_scheduler_or_option_is_one_sentence_with_the_nearest_name():
    with pytest.raises(ValueError, match="there is no scheduler 'DDIMSheduler'. Did you mean 'DDIMScheduler'"):
        make_plan(load_config(None, ["sampling.scheduler=DDIMSheduler"]))
    with pytest.raises(
        ValueError, match="DDIMScheduler has no option 'timestep_space'. Did you mean 'timestep_spacing'"
    ):
        scheduler_class({"name": "DDIMScheduler", "timestep_space": "leading"})
    assert scheduler_class({"name": "RFlowScheduler"}).__module__.startswith("fsframework.models.opensora_1_2")


def test_a_chosen_scheduler_has_the_checkpoints_settings_and_shares_the_weights(loaded_model):
    usual = loaded_model.pipe.scheduler
    assert with_scheduler(loaded_model, None, 8) is loaded_model
    other = with_scheduler(loaded_model, {"name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}, 8)
    assert loaded_model.pipe.scheduler is usual
    assert other.pipe.transformer is loaded_model.pipe.transformer
    assert type(other.pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    assert other.pipe.scheduler.config.prediction_type == usual.config.prediction_type
    found = describe(other.pipe.scheduler)
    assert (found["name"], found["options"]["timestep_spacing"]) == ("EulerDiscreteScheduler", "leading")
    assert not any(key.startswith("_") for key in found["options"])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"name": "FlowMatchEulerDiscreteScheduler"}, "predicts noise and is sampled by DDIMScheduler; FlowMatchEuler"),
        ({"name": "RFlowScheduler"}, "is sampled by DDIMScheduler alone"),
        ({"name": "DDIMScheduler", "prediction_type": "sample"}, "was trained with prediction_type epsilon"),
        ({"name": "DDIMScheduler", "timestep_spacing": "sideways"}, "DDIMScheduler can not sample .* sideways"),
    ],
)
def test_a_scheduler_that_can_not_sample_the_model_is_refused(loaded_model, wanted, message):
    with pytest.raises(ValueError, match=rf"^sampling\.scheduler: .*{message}"):
        with_scheduler(loaded_model, wanted, 8)


def test_settings_of_the_checkpoint_that_another_scheduler_does_not_know_are_recorded_as_ignored():
    from diffusers import CogVideoXDDIMScheduler, DDIMScheduler

    shifted = CogVideoXDDIMScheduler(snr_shift_scale=1.0)
    assert describe(DDIMScheduler.from_config(shifted.config))["ignored"] == {"snr_shift_scale": 1.0}
    assert describe(shifted)["ignored"] == {}


def test_the_scheduler_changes_the_name_of_the_run_and_leaving_it_out_does_not(loaded_model, overrides):
    def job(*more):
        plan = make_plan(load_config(None, [*overrides, *more]))
        return prepare(plan, loaded_model, Path(plan.config.output.runs_dir), World())

    usual, other, offset = (
        job(), job("sampling.scheduler=EulerDiscreteScheduler"),
        job("sampling.scheduler={name: EulerDiscreteScheduler, steps_offset: 1}"),
    )  # fmt: skip
    assert len({one.directory.path for one in (usual, other, offset)}) == 3
    assert len({one.references.folder for one in (usual, other, offset)}) == 3
    # As before there was the key, so that finished runs and references stay what they are.
    plan = usual.plan
    sampling = sampling_of(plan.config, loaded_model)
    assert set(pixels_of(plan, loaded_model, sampling)["sampling"]) == {
        "num_steps", "guidance_scale", "height", "width", "num_frames",
    }  # fmt: skip


@pytest.mark.slow
def test_runs_of_two_samplers_say_which_and_are_compared_by_it(loaded_model, overrides):
    """Each sampler has its own references, timesteps and table; a run made before samplers were recorded joins its own."""
    folders = []
    for sampler in ("null", "{name: EulerDiscreteScheduler, timestep_spacing: trailing}"):
        for interval in (2, 3):
            few = [*overrides, "prompts.limit=2", f"sampling.scheduler={sampler}", f"policy.interval={interval}"]
            folders.append(run(load_config(None, few), loaded_model))
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert [m["scheduler"]["name"] for m in metrics] == ["DDIMScheduler"] * 2 + ["EulerDiscreteScheduler"] * 2
    for folder, found in zip(folders, metrics):
        trace = pd.read_parquet(folder / "trace.parquet")
        said = {key: found["scheduler"][key] for key in ("num_steps", "first_timestep", "last_timestep")}
        first = trace[trace.video == 0]
        assert said == {"num_steps": 8, "first_timestep": first.timestep.max(), "last_timestep": first.timestep.min()}
        assert float(trace.cache_bytes_peak.max()) == found["cache_bytes_peak"]["mean"] > 0
    assert metrics[2]["scheduler"]["first_timestep"] == 999  # trailing spacing begins at the noisiest
    again = load_config(folders[2] / "config.yaml")
    assert again.sampling.scheduler == {"name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
    assert run(dataclasses.replace(again, output=load_config(None, overrides).output), loaded_model) == folders[2]
    with pytest.raises(ValueError, match="(?s)sampling.scheduler: .*Split them with --by scheduler"):
        compare(folders, Options())
    by = compare(folders, Options(by=("scheduler",)))
    assert [block.name for block in by.blocks] == ["scheduler DDIMScheduler", "scheduler EulerDiscreteScheduler"]
    assert [[len(sweep.settings) for sweep in block.sweeps] for block in by.blocks] == [[2], [2]]
    old = json.loads((folders[0] / "metrics.json").read_text())
    del old["scheduler"]
    (folders[0] / "metrics.json").write_text(json.dumps(old))
    by = compare(folders, Options(by=("scheduler",)))
    assert [[len(sweep.settings) for sweep in block.sweeps] for block in by.blocks] == [[2], [2]]
