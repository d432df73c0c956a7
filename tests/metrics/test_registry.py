import math
import subprocess
import sys

import pytest
import torch

from fsframework.data import bouncing_digits
from fsframework.metrics import METRICS, PSNR, PromptAdherenceMetric, aggregate


def test_every_metric_states_its_facts_and_runs_on_a_small_clip():
    clip = torch.rand(4, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    assert set(METRICS) >= {"psnr", "ssim", "ms_ssim", "flicker", "adherence"}
    for name, metric_class in METRICS.items():
        metric = metric_class()
        assert metric.name == name
        assert metric.description
        if missing := metric.available():
            assert "install" in missing or "download" in missing
            continue
        values = metric(clip, clip if metric.needs_reference else None, "digit 6 is moving up and down")
        assert tuple(values) in (metric.value_names(), ())


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'psnr'"):
        METRICS["pnsr"]


def test_aggregate_gives_unit_direction_interval_and_n_and_leaves_out_what_nobody_measured():
    rows = [{"psnr": 20.0, "digit": 1.0}, {"psnr": math.inf}]
    entries = aggregate([PSNR(), PromptAdherenceMetric()], rows)
    assert set(entries) == {"psnr", "digit"}
    assert (entries["psnr"]["unit"], entries["psnr"]["better"], entries["psnr"]["n"]) == ("dB", "higher", 2)
    assert entries["digit"]["n"] == 1
    assert entries["digit"]["low"] < 0.3  # Wilson: one of one says little


def test_adherence_of_a_real_clip_holds_and_of_the_wrong_caption_fails():
    metric = PromptAdherenceMetric()
    captions = [bouncing_digits.caption(3, m) for m in bouncing_digits.MOTIONS]
    assert all(metric.applies_to(c) for c in captions)
    assert not metric.applies_to("a cat on a sofa")
    frames = torch.zeros(16, 32, 32, 3)
    for t in range(16):
        row = round(9 + 8 * math.sin(t / 3))
        frames[t, row : row + 12, 14:18] = 1.0  # a bar, read as a 1, moving up and down
    up_and_down = metric(frames, None, bouncing_digits.caption(1, bouncing_digits.MOTIONS[0]))
    sideways = metric(frames, None, bouncing_digits.caption(1, bouncing_digits.MOTIONS[1]))
    assert up_and_down["motion"] == 1.0
    assert sideways == {"digit": up_and_down["digit"], "motion": 0.0, "adherence": 0.0}


def test_importing_the_metrics_imports_nothing_heavy():
    code = "import sys, fsframework.metrics; bad = {'torchvision', 'torchmetrics', 'sklearn', 'diffusers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code + "; sys.exit(repr(bad) if bad else 0)"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
