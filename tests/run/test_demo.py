"""The demo on the random pipeline; on the bundled model it is in tests/test_demo.py."""

import pytest

from fsframework.run.demo import CAPTIONS, POLICIES, demo


@pytest.fixture
def changes(pipeline_folder, tmp_path):
    return [
        f"model.name={pipeline_folder}",
        "sampling={num_steps: 12, num_frames: 8, height: 16, width: 16}",
        "prompts.limit=2",
        "metrics=[psnr, ssim]",
        "tracking.wandb=disabled",
        f"output.runs_dir={tmp_path / 'demo'}",
    ]


def test_demo_makes_three_runs_one_report_and_ends_with_a_table_and_its_path(changes, tmp_path, capsys):
    report = demo(changes)
    lines = capsys.readouterr().out.strip().splitlines()
    assert report == tmp_path / "demo" / "report.html"
    assert lines[-1] == f"report: {report}"
    titles = "policy  speedup CPU  speedup wall  FLOPs saved  reused  PSNR dB  SSIM  adherence  cache  reads/step"
    assert lines[0].split() == titles.split()
    assert [line.split()[0] for line in lines[1:4]] == list(POLICIES) == ["full", "static", "foresight"]
    assert "identical" in lines[1]
    assert "2 videos each of 12 steps, float32 on cpu" in lines[5]
    html = report.read_text()
    for name in POLICIES:
        assert name in html
    runs = [p for p in (tmp_path / "demo").iterdir() if (p / "metrics.json").is_file()]
    assert sorted(p.name.split("-")[0] for p in runs) == sorted(POLICIES)
    assert all((p / "report.html").is_file() for p in runs)


def test_demo_again_makes_no_video_and_fresh_makes_all(changes, tmp_path, monkeypatch):
    demo(changes)
    stamps = lambda: {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*.mp4")}
    first = stamps()
    demo(changes)
    assert stamps() == first
    kept = tmp_path / "demo" / "notes-of-mine"
    kept.mkdir()
    demo(changes, fresh=True)
    assert all(stamps()[path] > first[path] for path in first)
    assert kept.is_dir()


def test_demo_shows_captions_that_training_saw_each_with_a_digit_of_its_own():
    from fsframework.data.bouncing_digits import HELD_OUT_PAIRS, parse_caption

    pairs = [parse_caption(caption) for caption in CAPTIONS]
    assert None not in pairs
    assert not set(pairs) & set(HELD_OUT_PAIRS)
    assert len({digit for digit, _ in pairs}) == len(CAPTIONS)
    assert len({motion for _, motion in pairs}) == 2
