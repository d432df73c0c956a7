import json
import math
from pathlib import Path

import pytest

from fsframework.metrics import PSNR
from fsframework.run import artifacts, provenance
from fsframework.run.resolve import build_metrics, build_policy, code_digest
from fsframework.run.results import summarize, table


def record(index: int, seconds: float, reference: float | None, psnr: float | None) -> dict:
    return {
        "index": index, "cpu_seconds": seconds, "wall_seconds": 2 * seconds, "reference_cpu_seconds": reference,
        "reference_wall_seconds": None if reference is None else 3 * reference, "reuse_fraction": 0.5,
        "flops_executed": 60.0, "flops_full": 100.0, "flops_saved": 0.4, "cache_bytes_peak": 10, "host_reads_per_step": 1,
        "identical": psnr == math.inf, "metrics": {"psnr": psnr},
    }  # fmt: skip


def test_speedup_is_a_ratio_of_totals_over_the_videos_timed_in_pairs():
    rows = [record(0, 1.0, 2.0, 20.0), record(1, 3.0, 4.0, 20.0), record(2, 100.0, None, 20.0)]
    summary = summarize(rows, [PSNR()], "cpu")
    assert summary["speedup"]["mean"] == 6.0 / 4.0
    assert summary["wall_speedup"]["mean"] == 18.0 / 8.0
    assert summary["speedup"]["n"] == summary["timing"]["num_pairs"] == 2
    assert summary["flops_speedup"]["mean"] == pytest.approx(100 / 60)
    assert "2 of 3 videos" in summary["notes"][0]


def test_on_an_accelerator_speedup_is_wall_time_since_its_work_is_not_cpu_time():
    summary = summarize([record(0, 1.0, 2.0, 20.0)], [PSNR()], "cuda")
    assert summary["speedup"]["mean"] == summary["wall_speedup"]["mean"] == 3.0
    assert summary["timing"]["clock_of_speedup"] == "wall seconds"


def test_an_identical_video_enters_psnr_as_error_zero_and_a_note_says_so():
    summary = summarize([record(0, 1, 1, 20.0), record(1, 1, 1, math.inf)], [PSNR()], "cpu")
    assert summary["psnr"]["mean"] == pytest.approx(20 + 10 * math.log10(2))  # the mean squared error halves
    assert "1 of 2 videos are bit-identical" in summary["notes"][0]


def test_json_keeps_infinity_and_marks_what_was_not_measured_in_strict_json():
    text = artifacts.to_json({"a": math.inf, "b": [math.nan, -math.inf], "c": "__x__"})
    assert text == '{"a": 1e999, "b": [null, -1e999], "c": "__x__"}'
    assert json.loads(text)["a"] == math.inf


def test_the_table_is_aligned_and_says_units():
    entry = lambda value: {"mean": value}
    metrics = {
        "speedup": entry(1.5), "wall_speedup": entry(1.25), "flops_saved": entry(0.42), "reuse_fraction": entry(0.5),
        "psnr": entry(math.inf), "ssim": entry(0.98765), "cache_bytes_peak": entry(123456.0),
        "host_reads_per_step": entry(0.5),
    }  # fmt: skip
    head, row = table([("foresight", metrics)]).splitlines()
    assert row.split() == [
        "foresight",
        "1.50x",
        "1.25x",
        "42",
        "%",
        "50",
        "%",
        "identical",
        "0.988",
        "-",
        "123.5",
        "kB",
        "0.50",
    ]
    assert head.index("speedup CPU") + len("speedup CPU") == row.index("1.50x") + len("1.50x")


def test_hash_ignores_the_order_of_keys_and_sees_every_value():
    assert artifacts.digest({"a": 1, "b": 2}) == artifacts.digest({"b": 2, "a": 1})
    assert artifacts.digest({"a": 1, "b": 2}) != artifacts.digest({"a": 1, "b": 3})


def test_code_digest_sees_code_and_not_comments_docstrings_or_layout():
    one = code_digest('def f(x):\n    """Doc."""\n    return x + 1\n')
    assert code_digest("# why\ndef f(x):\n    return (x\n        + 1)\n") == one
    assert code_digest("def f(x):\n    return x + 2\n") != one


def test_model_fingerprint_changes_with_a_weight_and_not_with_the_training_record(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "w.safetensors").write_bytes(b"abc")
    (tmp_path / "training").mkdir()
    first = provenance.model_fingerprint(tmp_path)
    (tmp_path / "training" / "evaluation.json").write_text("{}")
    assert provenance.model_fingerprint(tmp_path) == first
    (tmp_path / "transformer" / "w.safetensors").write_bytes(b"abd")
    assert provenance.model_fingerprint(tmp_path) != first


def test_git_state_is_none_outside_of_a_checkout(tmp_path):
    assert provenance.git_state(tmp_path) is None


def test_check_writable_makes_nothing(tmp_path):
    artifacts.check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_policy_options_are_converted_to_the_types_of_its_fields():
    policy = build_policy({"name": "foresight", "gamma": 1, "warmup": 5})
    assert (policy.gamma, type(policy.gamma)) == (1.0, float)
    assert (policy.warmup, type(policy.warmup)) == (5, int)
    assert build_policy({"name": "foresight", "warmup": 0.5}).warmup == 0.5
    assert build_policy({"name": "static", "last_block": None}).last_block is None


def test_a_metric_that_can_not_run_is_left_out_by_default_and_an_error_when_asked_for(monkeypatch):
    from fsframework.metrics import SSIM

    monkeypatch.setattr(SSIM, "available", lambda self: "pip install something")
    assert "ssim" not in [metric.name for metric in build_metrics(None)]
    with pytest.raises(ValueError, match="metric 'ssim' can not run here: pip install something"):
        build_metrics(["psnr", "ssim"])


def test_a_long_prompt_makes_a_short_plain_file_name():
    name = artifacts.RunDirectory(Path("x")).video_file(7, "A cat; in Zürich / on *two* very, very long legs of wood")
    assert name == "videos/0007-a-cat-in-z-rich-on-two-very-very-long-le.mp4"
