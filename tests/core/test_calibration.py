import dataclasses
import json
import math
import warnings

import pytest

from fsframework.core import Artifact, Kind, Part, ReuseWarning, Run, Site
from fsframework.core.calibration import needs_calibration

TIMESTEPS = [999.0, 750.0, 500.0, 250.0]
FACTS = {
    "family": "latte",
    "checkpoint": "latte-1",
    "scheduler": "DDIMScheduler",
    "latent_shape": [2, 4, 16, 64, 64],
    "num_steps": 4,
    "timesteps": TIMESTEPS,
}


def artifact(**changes) -> Artifact:
    facts = {k: v for k, v in {**FACTS, **changes}.items() if v is not None}
    return Artifact("teacache", {"coefficients": [1.0, 0.0]}, facts)


def run(num_steps: int = 4, timesteps=TIMESTEPS, **changes) -> Run:
    facts = {
        "family": "latte",
        "checkpoint": "latte-1",
        "scheduler": "DDIMScheduler",
        "latent_shape": (2, 4, 16, 64, 64),
    }
    facts = {k: v for k, v in {**facts, **changes}.items() if v is not None}
    return Run(num_steps, timesteps, [Site(Part.TRUNK, Kind.MIXED, 0, 4)], facts=facts)


def test_the_run_it_was_measured_on_fits_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        artifact().check(run())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"family": "wan"}, "family was latte, is wan"),
        ({"checkpoint": "latte-2"}, "checkpoint was latte-1, is latte-2"),
        ({"scheduler": "EulerDiscreteScheduler"}, "scheduler was DDIMScheduler, is EulerDiscreteScheduler"),
        ({"num_steps": 5}, "num_steps was 4, is 5"),
        ({"latent_shape": (2, 4, 16, 32, 32)}, r"latent_shape was \[4, 16, 64, 64\], is \[4, 16, 32, 32\]"),
        ({"timesteps": [999.0, 800.0, 500.0, 250.0]}, "the timestep of step 1 was 750, is 800"),
    ],
)
def test_each_fact_that_differs_is_refused_and_named_unless_the_policy_carries_it_over(changes, said):
    name = next(iter(changes))
    with pytest.raises(ValueError, match=f"the teacache artifact does not fit this run: {said}. Calibrate again"):
        artifact().check(run(**changes))
    with pytest.raises(ValueError, match=said):
        artifact().check(run(**changes), interpolates={"family", "checkpoint", "scheduler"} - {name})
    with pytest.warns(ReuseWarning, match=f"is carried over: {said}"):
        artifact().check(run(**changes), interpolates=[name])


def test_a_difference_that_can_be_carried_over_does_not_excuse_one_that_can_not():
    other = run(num_steps=5, family="wan")
    with pytest.raises(ValueError, match="this run: family was latte, is wan. Calibrate"):
        artifact().check(other, interpolates=("num_steps",))
    with pytest.raises(ValueError, match="family was latte, is wan; num_steps was 4, is 5"):
        artifact().check(other)


@pytest.mark.parametrize("name", ["family", "checkpoint", "scheduler", "latent_shape"])
def test_what_either_side_does_not_know_is_not_compared(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        artifact(**{name: None}).check(run(**{name: "another" if name != "latent_shape" else (1, 1, 1)}))
        artifact().check(run(**{name: None}))
    artifact(timesteps=None).check(run(timesteps=[1.0, 2.0, 3.0, 4.0]))
    artifact(num_steps=None, timesteps=None).check(run(num_steps=9))


def test_the_batch_and_the_kind_of_sequence_of_the_latents_shape_do_not_matter():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for shape in ([1, 4, 16, 64, 64], (7, 4, 16, 64, 64)):
            artifact().check(run(latent_shape=shape))
            artifact(latent_shape=shape).check(run())


def test_timesteps_are_compared_where_all_else_is_equal_and_not_to_the_last_bit():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        artifact().check(run(timesteps=[t + 0.05 for t in TIMESTEPS]))
        artifact(timesteps=[]).check(run())
    with pytest.raises(ValueError, match="the timestep of step 0"):
        artifact().check(run(timesteps=[t + 0.2 for t in TIMESTEPS]))
    # Sigmas between 0 and 1 are compared on their own scale.
    with pytest.raises(ValueError, match=r"the timestep of step 1 was 0.75, is 0.7503"):
        artifact(timesteps=[1, 0.75, 0.5, 0.25]).check(run(timesteps=[1, 0.7503, 0.5, 0.25]))
    # Another size brings other timesteps with it where the sampler shifts them; the size is what is said.
    shifted = run(timesteps=[999.0, 900.0, 800.0, 500.0], latent_shape=(2, 4, 16, 32, 32))
    with pytest.warns(ReuseWarning, match="carried over: latent_shape was"):
        artifact().check(shifted, interpolates=("latent_shape",))


def test_who_carries_over_another_number_of_steps_carries_over_other_timesteps():
    with pytest.warns(ReuseWarning, match="the timestep of step 1 was 750, is 800"):
        artifact().check(run(timesteps=[999.0, 800.0, 500.0, 250.0]), interpolates=("num_steps",))


# The file.


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    path = tmp_path / "new" / "a.json"
    written = dataclasses.replace(artifact(), provenance={"clips": 16})
    written.save(path)
    assert Artifact.load(path, "teacache") == written
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    path = tmp_path / "a.json"
    artifact().save(path)
    first = Artifact.load(path, "teacache")
    assert Artifact.load(path, "teacache") is first
    dataclasses.replace(artifact(), values={"coefficients": [2.0]}).save(path)
    assert Artifact.load(path, "teacache").values == {"coefficients": [2.0]}


def test_a_relative_path_means_the_folder_one_is_in_now(tmp_path, monkeypatch):
    for number in (1, 2):
        folder = tmp_path / str(number)
        dataclasses.replace(artifact(), values={"number": number}).save(folder / "a.json")
        monkeypatch.chdir(folder)
        assert Artifact.load("a.json", "teacache").values == {"number": number}


def test_no_file_says_how_to_make_one(tmp_path):
    for missing, words in (
        (tmp_path / "a.json", f"no artifact {tmp_path / 'a.json'}"),
        (tmp_path, f"{tmp_path} is a folder, no artifact"),
    ):
        with pytest.raises(ValueError, match=f"teacache: {words}. Make it with `fsf calibrate teacache MODEL`"):
            Artifact.load(missing, "teacache")
    with pytest.raises(ValueError, match="teacache: artifact=3 must be the path of a file of `fsf calibrate teacache"):
        Artifact.load(3, "teacache")


def test_the_command_that_would_mend_it_names_the_runs_model():
    with pytest.raises(ValueError, match=r"again for it: `fsf calibrate teacache latte-1 sampling.num_steps=5`\."):
        artifact().check(run(5))
    error = needs_calibration("magcache", run(checkpoint=None), "a table", "ratios=[1.0]")
    assert str(error) == (
        "magcache needs a table of this model. Measure it with `fsf calibrate magcache MODEL sampling.num_steps=4` and set "
        "the policy's option artifact to the file that writes; or give ratios=[1.0]."
    )


def test_an_artifact_of_another_policy_is_refused(tmp_path):
    artifact().save(tmp_path / "a.json")
    with pytest.raises(ValueError, match="was made for the policy 'teacache', not for 'magcache'"):
        Artifact.load(tmp_path / "a.json", "magcache")


def test_another_version_is_said_also_where_its_fields_are_others(tmp_path):
    content = {**dataclasses.asdict(artifact()), "version": 2, "sensors": []}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has format version 2; this fsframework reads version 1"):
        Artifact.load(tmp_path / "a.json", "teacache")


def _content(**changes) -> str:
    return json.dumps({**dataclasses.asdict(artifact()), **changes})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        (_content()[:50], "is not an artifact"),
        ("[1, 2]", "it has no format version"),
        ('{"a": 1}', "it has no format version"),
        ('{"version": 1}', "it has no 'policy' and no 'values' and no 'facts'"),
        (_content(more=1), "it has an unknown 'more'"),
        (_content(values=[1]), "'values' is no mapping"),
        (_content(facts=None), "'facts' is no mapping"),
    ],
)
def test_a_damaged_file_is_one_sentence_with_its_name(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not an artifact of `fsf calibrate`") as error:
        Artifact.load(path, "teacache")
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_bytes_that_are_no_text_are_a_damaged_file(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ValueError, match="is not an artifact"):
        Artifact.load(tmp_path / "a.json", "teacache")


def test_the_digest_is_that_of_what_a_policy_sees():
    one = artifact()
    assert dataclasses.replace(one, provenance={"date": "today"}).digest == one.digest
    assert dataclasses.replace(one, values={"coefficients": (1.0, 0.0)}).digest == one.digest
    assert dataclasses.replace(one, values={"coefficients": [1.0, math.ulp(1.0)]}).digest != one.digest
    assert artifact(family="wan").digest != one.digest
    assert dataclasses.replace(one, policy="magcache").digest != one.digest
