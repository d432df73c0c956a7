"""A policy inside another, from the config to the run directory and back."""

import json

import pytest
import yaml

from fsframework.config import load_config
from fsframework.policies import Foresight, StaticReuse
from fsframework.policies.combine import Combined
from fsframework.policies.forecast import ForecastReuse
from fsframework.policies.taylorseer import TaylorSeer
from fsframework.run.resolve import build_policy, policy_options, policy_source_digest
from fsframework.run.runner import run

pytestmark = pytest.mark.filterwarnings("ignore::fsframework.core.review.ReuseWarning")

ON_FORESIGHT = "policy: {name: forecast, order: 2, base: {name: foresight, gamma: 0.5, recompute_every: 3}}\n"
BESIDE = """
policy:
  name: combine
  policies:
    - {name: static, storage: residual, interval: 3, reuse_steps: 1, warmup: 2}
    - name: forecast
      base: {name: taylorseer, interval: 3, first_steps: 2, order: 0}
  only: [null, ["*.mlp", "*.attention"]]
"""


def policy_of(tmp_path, text, *overrides):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return build_policy(load_config(path, list(overrides)).policy)


def test_a_policy_inside_another_is_a_mapping_with_a_name(tmp_path):
    assert policy_of(tmp_path, ON_FORESIGHT) == ForecastReuse(Foresight(gamma=0.5, recompute_every=3), order=2)


def test_a_name_alone_will_do(tmp_path):
    assert policy_of(tmp_path, "policy: {name: forecast, base: foresight}\n") == ForecastReuse(Foresight())
    assert policy_of(tmp_path, "policy: forecast\n") == ForecastReuse()
    assert policy_of(tmp_path, "policy: {name: forecast, base: null}\n") == ForecastReuse()


def test_several_policies_are_a_list_and_may_hold_others(tmp_path):
    static = StaticReuse(storage="residual", interval=3, reuse_steps=1, warmup=2)
    taylor = ForecastReuse(TaylorSeer(interval=3, first_steps=2, order=0))
    assert policy_of(tmp_path, BESIDE) == Combined((static, taylor), only=(None, ("*.mlp", "*.attention")))


def test_an_override_reaches_an_option_of_the_inner_policy(tmp_path):
    policy = policy_of(tmp_path, ON_FORESIGHT, "policy.base.gamma=0.3", "policy.order=1")
    assert policy == ForecastReuse(Foresight(gamma=0.3, recompute_every=3), order=1)


def test_an_override_can_replace_the_inner_policy(tmp_path):
    assert policy_of(tmp_path, ON_FORESIGHT, "policy.base=static") == ForecastReuse(StaticReuse(), order=2)
    policy = policy_of(tmp_path, "policy: {name: forecast, base: static}\n", "policy.base={name: static, interval: 4}")
    assert policy == ForecastReuse(StaticReuse(interval=4))


def test_inner_options_have_the_types_of_the_inner_class():
    policy = build_policy({"name": "forecast", "base": {"name": "static", "interval": "4"}})
    assert policy.base.interval == 4


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"name": "forecast", "base": {"name": "foresight", "gama": 1}},
            r"^policy\.base: policy 'foresight' has no option 'gama'\. Did you mean 'gamma'\?",
        ),
        ({"name": "forecast", "base": {"name": "static", "interval": "often"}}, r"^policy\.base\.interval='often' does not fit"),
        ({"name": "forecast", "base": {"name": "foresight", "gamma": -1}}, r"^policy\.base: foresight: gamma=-1.* must be >= 0"),
        ({"name": "forecast", "base": "foresigt"}, r"^policy\.base: unknown policy 'foresigt'\. Did you mean 'foresight'"),
        ({"name": "forecast", "base": {"gamma": 1}}, r"^policy\.base of forecast must be a policy, such .*found \{'gamma': 1\}"),
        ({"name": "forecast", "base": 3}, r"^policy\.base of forecast must be a policy"),
        (
            {"name": "combine", "policies": ["taylorseer", {"name": "static", "interval": 0}]},
            r"^policy\.policies\[1\]: static: interval=0 must be at least 1",
        ),
        (
            {"name": "combine", "policies": [{"name": "forecast", "base": {"name": "static", "every": 2}}]},
            r"^policy\.policies\[0\]\.base: policy 'static' has no option 'every'",
        ),
        ({"name": "combine", "policies": ["foresight", "static"]}, r"^combine: foresight and static both ask about block"),
        ({"name": "forecast", "order": "two"}, r"^policy\.order='two' does not fit forecast's option"),
    ],
)  # fmt: skip
def test_an_error_in_an_inner_option_names_its_path(block, message):
    with pytest.raises(ValueError, match=message):
        build_policy(block)


@pytest.mark.parametrize(
    "policy",
    [
        ForecastReuse(Foresight(gamma=0.3), order=2, judge="forecast"),
        Combined([StaticReuse(storage="residual"), ForecastReuse(TaylorSeer())], only=[None, "*.mlp"]),
    ],
)
def test_the_options_are_plain_and_give_the_policy_back(policy):
    options = json.loads(json.dumps(policy_options(policy)))
    name = "combine" if isinstance(policy, Combined) else "forecast"
    assert build_policy({"name": name, **yaml.safe_load(yaml.safe_dump(options))}) == policy


def test_the_run_directorys_config_gives_the_same_run(tmp_path, overrides, loaded_model):
    given = [o for o in overrides if not o.startswith("policy.")]
    path = tmp_path / "run.yaml"
    path.write_text("policy: {name: forecast, base: {name: static, warmup: 2, interval: 3}}\n")
    first = run(load_config(path, [*given, "prompts.limit=1", "policy.base.interval=2"]), loaded_model)
    written = yaml.safe_load((first / "config.yaml").read_text())["policy"]
    assert (written["base"]["name"], written["base"]["interval"], written["order"]) == ("static", 2, 1)
    assert build_policy(written) == ForecastReuse(StaticReuse(warmup=2, interval=2))
    again = run(load_config(first / "config.yaml", [f"output.runs_dir={tmp_path / 'again'}"]), loaded_model)
    assert again.name == first.name
    fractions = [json.loads((d / "metrics.json").read_text())["reuse_fraction"]["mean"] for d in (first, again)]
    assert fractions == [3 / 8, 3 / 8]  # C C F C F C F C


def test_the_code_of_a_policy_inside_counts_as_the_policys(monkeypatch):
    from fsframework.run import resolve

    before = policy_source_digest(ForecastReuse(StaticReuse()))
    assert before != policy_source_digest(ForecastReuse(Foresight()))
    assert policy_source_digest(Combined([StaticReuse(), TaylorSeer()])) != policy_source_digest(
        Combined([StaticReuse()])
    )
    digest = resolve.code_digest
    monkeypatch.setattr(
        resolve, "code_digest", lambda s: digest(s.replace("is_reuse_step(step", "not is_reuse_step(step"))
    )
    assert policy_source_digest(ForecastReuse(StaticReuse())) != before
    monkeypatch.setattr(resolve, "code_digest", lambda s: digest(s.replace("# ", "#  ")))
    assert policy_source_digest(ForecastReuse(StaticReuse())) == before
