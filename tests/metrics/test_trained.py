"""LPIPS, CLIP similarity, FVD and VMAF: arithmetic with random stand-ins for trained weights, and what is said without."""

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clips import blurred, noisy, waves

from fsframework.metrics import FVD, LPIPS, PSNR, VMAF, ClipSimilarity, clip_similarity, fvd, lpips, vmaf
from fsframework.metrics.fvd import frechet_distance, jackknife, kernel_distance
from fsframework.run import features
from fsframework.run.resolve import build_metrics
from fsframework.run.results import summarize

CLIP = waves()


@pytest.fixture
def weights_home(monkeypatch, tmp_path):
    """An empty folder for downloaded weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for cached in (lpips._network, fvd._network):
        cached.cache_clear()
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    for cached in (lpips._network, fvd._network):
        cached.cache_clear()


def random_alexnet(path) -> None:
    torch.manual_seed(0)
    network = lpips.AlexNetDistance().features
    torch.save(
        {f"features.{k}": v for k, v in network.state_dict().items()} | {"classifier.1.bias": torch.zeros(3)}, path
    )


class TestLPIPS:
    def test_without_weights_it_says_what_to_download_and_a_run_goes_on_without_it(self, weights_home):
        message = LPIPS().available()
        assert "alexnet-owt-7be5be79.pth as " + str(weights_home) in message
        assert "lpips" not in [metric.name for metric in build_metrics(None)]
        with pytest.raises(ValueError, match="metric 'lpips' can not run here: lpips needs AlexNet's"):
            build_metrics(["lpips"])

    def test_without_torchmetrics_it_says_what_to_install(self, weights_home, monkeypatch):
        monkeypatch.setattr(lpips.importlib.util, "find_spec", lambda name: None)
        assert "pip install torchmetrics" in LPIPS().available()

    def test_identical_is_zero_order_does_not_matter_and_noise_is_far(self, weights_home):
        random_alexnet(weights_home / lpips.BACKBONE)
        metric = LPIPS()
        assert metric.available() is None
        value = lambda a, b: metric(a, b, "")["lpips"]
        assert value(CLIP, CLIP.clone()) == 0
        assert value(noisy(CLIP, 0.1), CLIP) == pytest.approx(value(CLIP, noisy(CLIP, 0.1)), rel=1e-6)
        noise = [value(noisy(CLIP, amount), CLIP) for amount in (0.02, 0.1, 0.3)]
        assert 0 < noise[0] < noise[1] < noise[2]

    def test_the_distance_is_a_weighted_sum_of_squares_of_unit_vectors(self):
        network = lpips.AlexNetDistance().requires_grad_(False)
        a = torch.zeros(1, 2, 1, 1) + torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
        assert lpips._unit(a).flatten().tolist() == pytest.approx([0.6, 0.8])
        network._activations = lambda x: [torch.full((1, 1, 1, 1), float(x)) for _ in range(5)]
        # One channel: the unit vector is the sign, so 3 and -2 are 2 apart, squared 4, five layers of weight 1.
        network.linear = torch.nn.ParameterList([torch.ones(1, 1, 1, 1)] * 5)
        assert network(torch.tensor([3.0]), torch.tensor([-2.0])).item() == pytest.approx(20.0)

    def test_frames_too_small_for_the_network_are_refused(self, weights_home):
        random_alexnet(weights_home / lpips.BACKBONE)
        with pytest.raises(ValueError, match="lpips needs frames of at least 32 x 32 pixels; these are 16 x 64"):
            LPIPS()(CLIP[:, :16], CLIP[:, :16], "")


@pytest.fixture(scope="module")
def clip_checkpoint(tmp_path_factory):
    """A random CLIP of two layers and a tokenizer that knows a few words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=dict(small, vocab_size=8, max_position_embeddings=6, eos_token_id=2),
        vision_config=dict(small, image_size=32, patch_size=8),
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    words = {"<pad>": 0, "<unk>": 1, "<end>": 2, "red": 3, "green": 4, "disc": 5}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


class TestClipSimilarity:
    def test_without_the_checkpoint_it_says_what_to_download(self, monkeypatch):
        monkeypatch.setattr(ClipSimilarity, "checkpoint", "nobody/no-such-clip")
        assert "hf download nobody/no-such-clip" in ClipSimilarity().available()

    def test_it_is_the_mean_cosine_of_the_models_own_embeddings(self, clip_checkpoint, monkeypatch):
        from transformers import CLIPModel

        monkeypatch.setattr(ClipSimilarity, "checkpoint", str(clip_checkpoint))
        metric = ClipSimilarity()
        assert metric.available() is None
        assert metric.needs_reference is False
        value = metric(CLIP, None, "red disc")["clip_similarity"]
        model = CLIPModel.from_pretrained(clip_checkpoint).eval()
        with torch.no_grad():
            out = model(
                input_ids=torch.tensor([[3, 5]]), pixel_values=clip_similarity.preprocess(CLIP, 32),
            )  # fmt: skip
        cosines = [float(image @ out.text_embeds[0]) for image in out.image_embeds]
        assert value == pytest.approx(sum(cosines) / 2, abs=1e-6)
        assert value != pytest.approx(metric(CLIP, None, "green disc")["clip_similarity"], abs=1e-4)

    def test_a_prompt_longer_than_the_model_reads_is_cut(self, clip_checkpoint, monkeypatch):
        monkeypatch.setattr(ClipSimilarity, "checkpoint", str(clip_checkpoint))
        long, as_much_as_fits = (ClipSimilarity()(CLIP, None, "red " * n) for n in (50, 6))
        assert long == as_much_as_fits

    def test_frames_are_resized_by_the_shorter_side_and_the_middle_is_kept(self):
        wide = torch.zeros(1, 32, 96, 3)
        wide[:, :, 32:64] = 1.0  # the middle third
        seen = clip_similarity.preprocess(wide, 32)
        assert seen.shape == (1, 3, 32, 32)
        white = [(1 - m) / s for m, s in zip(clip_similarity._MEAN, clip_similarity._STD)]
        assert seen[0, :, 16, 16].tolist() == pytest.approx(white, abs=1e-5)
        assert seen.amin().item() == pytest.approx(white[0], abs=0.5)  # nothing of the black thirds
        assert clip_similarity.preprocess(torch.zeros(1, 100, 60, 3), 32).shape == (1, 3, 32, 32)


class FakeI3D(torch.nn.Module):
    """Takes what the TorchScript port takes; its four features are channel means in -1 to 1 and the first frame's."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert rescale
        assert resize
        assert return_features
        x = x / 255 * 2 - 1
        return torch.cat([x.mean((2, 3, 4)), x[:, :, 0].mean((1, 2, 3))[:, None]], 1)


class TestFVD:
    def test_without_the_network_it_says_what_to_download(self, weights_home):
        message = FVD().available()
        assert message.startswith("fvd needs the I3D network")
        assert message.endswith(str(weights_home / "i3d_torchscript.pt"))

    def test_the_distance_of_normals_by_hand(self):
        # Means 3 and 0 apart 3; variances 4 and 1 (n - 1): 9 + 4 + 1 - 2 * sqrt(4 * 1) = 10.
        a = np.array([3 - 2.0, 3.0, 3 + 2.0])[:, None]
        b = np.array([-1.0, 0.0, 1.0])[:, None]
        assert frechet_distance(a, b) == pytest.approx(10.0)
        assert frechet_distance(b, a) == pytest.approx(10.0)
        assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-12)

    @pytest.mark.parametrize("n", [12, 5])
    def test_the_trace_of_the_root_agrees_with_scipys_square_root_of_a_matrix(self, n):
        from scipy.linalg import sqrtm

        generator = np.random.default_rng(0)
        a, b = generator.normal(size=(n, 8)), generator.normal(1, 2, size=(n, 8))  # n = 5: singular covariances
        s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = np.real(sqrtm(s @ t)) if n > 8 else None
        trace = np.trace(root) if root is not None else np.sqrt(np.abs(np.linalg.eigvals(s @ t))).sum()
        want = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s + t) - 2 * trace
        assert frechet_distance(a, b) == pytest.approx(want, rel=1e-5)

    def test_kernel_distance_by_hand(self):
        # One feature, kernel (xy + 1)^3; two pairs x = (0, 1), y = (0, 0): off the diagonal
        # k(x0,x1) = 1, k(y0,y1) = 1, k(x0,y1) = 1, k(x1,y0) = 1: 1 + 1 - 1 - 1 = 0.
        x, y = np.array([[0.0], [1.0]]), np.array([[0.0], [0.0]])
        assert kernel_distance(x, y)(np.arange(2)) == 0
        # x = (1, 1), y = (0, 0): k(x0,x1) = 8, the others 1: 8 + 1 - 1 - 1 = 7.
        assert kernel_distance(x + np.array([[1.0], [0.0]]), y)(np.arange(2)) == 7

    def test_kernel_distance_of_two_halves_of_one_distribution_is_unbiased(self):
        generator = np.random.default_rng(1)
        values = [
            kernel_distance(generator.normal(size=(12, 6)), generator.normal(size=(12, 6)))(np.arange(12))
            for _ in range(300)
        ]
        assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(300)

    def test_the_jackknife_of_a_mean_is_its_textbook_interval(self):
        values = np.random.default_rng(2).normal(size=20)
        interval = jackknife(lambda rows: float(values[rows].mean()), 20)
        assert interval.high - interval.mean == pytest.approx(1.959964 * values.std(ddof=1) / math.sqrt(20))
        assert (interval.mean, interval.n) == (values.mean(), 20)

    def test_features_of_videos_are_kept_and_become_one_number_for_the_run(self, weights_home, tmp_path):
        torch.jit.script(FakeI3D()).save(str(weights_home / fvd.NETWORK))
        metric = FVD()
        assert metric.available() is None
        for index in range(12):
            reference = torch.full((10, 8, 8, 3), 0.3 + 0.02 * index)
            assert metric(reference, reference, "") == {}  # nothing of one video
            found = metric.features(reference + 0.1, reference, "")
            assert found["video"] == pytest.approx(2 * (0.4 + 0.02 * index) - 1, abs=1e-6)
            features.save(tmp_path, index, {"fvd": found, "psnr": {}})
        kept = features.load(tmp_path, range(12))
        assert list(kept) == ["fvd"]
        records = [record() for _ in range(12)]
        summary = summarize(records, [metric, PSNR()], "cpu", kept)
        # A shift of 0.2 in each of four features, nothing else.
        assert summary["fvd"]["mean"] == pytest.approx(4 * 0.2**2, abs=1e-6)
        assert (summary["fvd"]["n"], summary["fvd"]["better"]) == (12, "lower")
        assert summary["kvd"]["mean"] > 0
        same = summarize(records, [metric], "cpu", {"fvd": [dict.fromkeys(v, v["reference"]) for v in kept["fvd"]]})
        assert same["fvd"]["mean"] == pytest.approx(0, abs=1e-12)
        assert same["kvd"]["mean"] == pytest.approx(0, abs=1e-12)

    def test_few_videos_are_refused_with_a_sentence_among_the_notes(self):
        one = {"video": np.zeros(400), "reference": np.zeros(400)}
        few = summarize([record()], [FVD()], "cpu", {"fvd": [one] * 9})
        assert not {"fvd", "kvd"} & set(few)
        assert "at least 10 videos of at least 10 frames; there are 9" in " ".join(few["notes"])
        more = summarize([record()], [FVD()], "cpu", {"fvd": [one] * 10})
        assert "kvd" in more
        assert "fvd" not in more
        assert "fvd needs more than 400 videos" in " ".join(more["notes"])

    def test_clips_too_short_for_the_network_have_no_features(self, weights_home, tmp_path):
        assert FVD().features(CLIP, CLIP, "") == {}
        features.save(tmp_path, 0, {"fvd": {}})
        assert not (tmp_path / "features").exists()
        with pytest.raises(ValueError, match="full-compute video"):
            FVD().features(CLIP, None, "")


def record() -> dict:
    costs = {f"{who}{what}_seconds": 1.0 for who in ("", "reference_") for what in ("cpu", "wall")}
    flops = {"flops_executed": 60.0, "flops_full": 100.0, "flops_saved": 0.4}
    return costs | flops | {"reuse_fraction": 0.5, "cache_bytes_peak": 10, "host_reads_per_step": 1, "metrics": {}}


class TestVMAF:
    def test_without_an_ffmpeg_that_has_libvmaf_it_says_what_to_install(self, monkeypatch):
        vmaf.ffmpeg_with_vmaf.cache_clear()
        monkeypatch.setattr(vmaf.shutil, "which", lambda name: "/usr/bin/ffmpeg")
        monkeypatch.setattr(vmaf.importlib.util, "find_spec", lambda name: None)
        plain = SimpleNamespace(stdout=" ... ssim VV->V \n ... vmafmotion V->V")
        monkeypatch.setattr(vmaf.subprocess, "run", lambda *args, **kwargs: plain)
        assert VMAF().available() == "vmaf runs an ffmpeg with libvmaf: pip install imageio-ffmpeg"
        vmaf.ffmpeg_with_vmaf.cache_clear()

    @pytest.mark.skipif(VMAF().available() is not None, reason="no ffmpeg with libvmaf")
    def test_identical_is_near_100_and_damage_is_worse(self):
        clip = waves(64, 4)
        value = lambda video: VMAF()(video, clip, "")["vmaf"]
        assert value(clip.clone()) > 95
        assert value(clip) > value(blurred(clip)) > value(noisy(clip, 0.3))

    def test_a_failing_ffmpeg_is_an_error_with_its_words(self, monkeypatch):
        monkeypatch.setattr(vmaf, "ffmpeg_with_vmaf", lambda: "ffmpeg")
        failed = subprocess.CompletedProcess([], 8, "", "could not load model")
        monkeypatch.setattr(vmaf.subprocess, "run", lambda *args, **kwargs: failed)
        with pytest.raises(RuntimeError, match="ffmpeg failed with code 8: could not load model"):
            VMAF()(CLIP, CLIP, "")

    def test_small_clips_are_enlarged_and_the_mean_of_the_log_is_returned(self, monkeypatch):
        commands = []

        def run(command, cwd, **kwargs):
            commands.append(command)
            (Path(cwd) / "log.json").write_text(json.dumps({"pooled_metrics": {"vmaf": {"mean": 87.5}}}))
            assert (Path(cwd) / "video").stat().st_size == 2 * 64 * 64 * 3
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(vmaf, "ffmpeg_with_vmaf", lambda: "ffmpeg")
        monkeypatch.setattr(vmaf.subprocess, "run", run)
        assert VMAF()(CLIP, CLIP, "") == {"vmaf": 87.5}
        assert "scale=192:192" in " ".join(commands[0])  # 64 x 3
