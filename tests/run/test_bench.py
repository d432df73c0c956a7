"""`fsf bench`: its options, its arithmetic, its counting, and a run as small as it gets."""

import json

import pytest
import torch

from fsframework.run.bench import Result, Row, Section
from fsframework.run.bench_config import BenchConfig, load_bench
from fsframework.run.bench_counts import flops_and_reads, host_reads
from fsframework.run.bench_plot import plot
from fsframework.run.bench_table import flops_speedup, middle, shown, speedups, table, write


def section() -> Section:
    bare = Row("bare model", "bare", cpu_seconds=[2.0, 4.0, 3.0], error=[0.0] * 3, flops=100.0, host_reads=0.0)
    half = Row("static", "ours", cpu_seconds=[1.0, 2.5, 1.5], error=[0.1, 0.3, 0.2], flops=50.0, host_reads=0.0)
    gone = Row("diffusers PAB", "diffusers", failed="ValueError: not registered")
    return Section("toy", [bare, half, gone], {"num_steps": 4})


def test_speedups_are_taken_round_by_round_and_set_against_flops():
    bare, half, _ = section().rows
    assert speedups(half, bare) == [2.0, 1.6, 2.0]
    assert flops_speedup(half, bare) == 2.0
    assert (middle([2.0, 1.6, 2.0]).mean, middle([2.0, 1.6, 2.0]).n) == (2.0, 3)
    assert shown(middle([1.5])) == "1.500 (n=1)"  # one round has no spread to show


def test_the_table_holds_median_interval_and_n_and_says_what_could_not_run():
    lines = table(section()).splitlines()
    assert [cell.strip() for cell in lines[5].split("|")[1:-1]] == [
        "ours: static",
        "2.000 (1.600 to 2.000, n=3)",
        "2.000",
        "1.000 (0.800 to 1.000, n=3)",
        "0.2000",
        "1.500 (1.000 to 2.500)",
        "-",
        "0.00",
    ]
    assert lines[6].startswith("| diffusers PAB | can not run here: ValueError: not registered |")


def test_the_picture_has_a_point_per_measured_method():
    assert plot(section()).count('r="4.5"') == 1


def test_a_stopped_benchmark_is_written_as_far_as_it_came(tmp_path, capsys):
    conditions = {"versions": {"torch": "2"}, "load_average": 0.1, "cpu": "a CPU", "cpu_count": 2, "device": "cpu"}
    write(Result(BenchConfig(), conditions, sections=[section()], stopped=True), tmp_path)
    assert "Stopped before the end" in capsys.readouterr().out
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["stopped"] is True
    assert content["sections"][0]["rows"][1]["speedup"]["mean"] == 2.0
    assert content["sections"][0]["rows"][2]["flops"] is None
    assert (tmp_path / "section-1.svg").read_text().startswith("<svg")


def test_flops_and_reads_are_counted_in_the_dispatcher():
    a, b = torch.ones(2, 3), torch.ones(3, 4)
    assert flops_and_reads(lambda: a @ b) == (2 * 2 * 3 * 4, 0)
    with host_reads() as found:
        float(a[0, 0]), bool(a[0, 0] > 0), a.tolist(), a.sum()
    assert len(found) == 3


@pytest.mark.parametrize(
    ("read", "num_reads"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: x.max().tolist(), 1),
        (lambda x: x.mean().cpu().numpy(), 2),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.unique(), 1),
        (lambda x: torch.arange(3).repeat_interleave(torch.tensor([1, 2, 3])), 1),
        # What a device does by itself.
        (lambda x: torch.arange(3).repeat_interleave(torch.tensor([1, 2, 3]), output_size=6), 0),
        (lambda x: torch.where(x > 0, x, 0.0)[torch.tensor([0])], 0),
        (lambda x: x.masked_fill(x > 0, 1.0).to(torch.float64).mean(), 0),
        (lambda x: torch.empty(2, 3).copy_(x), 0),
    ],
)
def test_whatever_the_host_would_wait_for_is_found_and_nothing_else(read, num_reads):
    with host_reads() as found:
        read(torch.ones(2, 3))
    assert len(found) == num_reads, found


def test_on_a_gpu_reads_of_what_lies_on_the_host_do_not_count():
    with host_reads("cuda") as found:
        torch.ones(1).item(), torch.ones(1).tolist(), torch.ones(3).nonzero()
    assert found == []


def test_attention_on_a_cpu_counts_too():
    x = torch.ones(1, 1, 4, 8)
    flops, _ = flops_and_reads(lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x))
    assert flops == 2 * (2 * 4 * 4 * 8)


def test_a_model_narrows_the_benchmark_to_itself_and_keys_are_strict():
    config = load_bench("tiny-latte", ["rounds=2", "policies=[full]"])
    assert (config.model, config.sections, config.rounds, config.policies) == ("tiny-latte", ["model"], 2, ["full"])
    with pytest.raises(ValueError, match="no key 'round'. Did you mean 'rounds'"):
        load_bench(None, ["round=2"])
    with pytest.raises(ValueError, match="no section 'wid'. Did you mean 'wide'"):
        load_bench(None, ["sections=[wid]"])
    with pytest.raises(ValueError, match="rounds=0 must be at least 1"):
        load_bench(None, ["rounds=0"])
    with pytest.raises(ValueError, match="multiple of 64"):
        load_bench(None, ["wide_hidden=100"])


@pytest.mark.slow
def test_on_latte_the_one_peer_that_runs_makes_our_decisions_and_the_others_say_why_not(tmp_path):
    """Of the timesteps 750, 500, 250 and 0 self-attention is reused at 500, cross-attention also at 250."""
    from fsframework.run.bench import bench

    result = bench(load_bench("tiny-latte", ["rounds=1", "num_steps=4", "policies=[full]", f"out={tmp_path}"]))
    (section,) = result.sections
    rows = {row.name: row for row in section.rows}
    theirs = [row for row in section.rows if row.name.startswith("diffusers PAB")]
    own = [row for row in section.rows if row.name.startswith("pab")]
    assert [row.error for row in theirs] == [row.error for row in own]
    assert 0 < theirs[0].error[0] < theirs[1].error[0]
    for name in ("diffusers FirstBlockCache 0.1", "diffusers TaylorSeer, with names that match"):
        assert "No cache context is set" in rows[name].failed
    assert any("LattePipeline does not open" in note for note in section.notes)


@pytest.mark.slow
def test_full_compute_has_no_error_and_static_reuse_every_second_step_half_the_blocks(tmp_path):
    from fsframework.run.bench import bench

    policies = "policies=[full,{name: static, interval: 2, warmup: 1}]"
    result = bench(load_bench("tiny-latte", ["rounds=1", "num_steps=4", "peers=false", policies, f"out={tmp_path}"]))
    bare, full, static = result.sections[0].rows
    assert full.error == [0.0]
    assert full.flops == bare.flops
    assert 0.45 < static.flops / bare.flops < 0.65  # half the blocks, and what is outside them in every step
    assert full.host_reads == static.host_reads == 2 / 4  # in 4 steps: the sampler's timesteps and the video's first
    assert static.error[0] > 0
