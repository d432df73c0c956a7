"""Fréchet and kernel video distance (Unterthiner et al. 2018, arXiv:1812.01717) between a run's videos and references.

Shape suffixes: T frames, C channels, H height, W width, N videos, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsframework.metrics.base import METRICS, Metric, check_pair
from fsframework.metrics.statistics import Z_95, Interval
from fsframework.metrics.weights import missing_file, weights_file

NETWORK = "i3d_torchscript.pt"
URL = "https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/main/i3d_torchscript.pt"
LEAST_FRAMES = 10
"""I3D halves time three times and pools two frames of what is left."""
LEAST_VIDEOS = 10
NUM_GROUPS = 20
"""The interval leaves out one of so many groups of videos at a time."""


@METRICS.register("fvd")
class FVD(Metric):
    """How far the videos of a method are, as a set, from the full-compute videos of the same prompts and seeds.

    Features are the 400 logits of I3D (Kinetics-400) in the TorchScript port of StyleGAN-V, fed all frames of a video.

    - `fvd`: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), means and covariances of the features. Its covariances are
      singular with no more videos than features, and it is biased upwards, the more the fewer videos there are:
      refused up to 400 videos. Compare runs of the same number of videos only.
    - `kvd`: squared maximum mean discrepancy with the kernel (x y / 400 + 1)^3, unbiased for any number of videos (it
      may be below 0). A video is never compared with its own reference, so that pairs that look alike do not count.

    Intervals are a jackknife over 20 groups of videos; a bootstrap would draw videos twice, which both distances take
    for likeness. Published values are against real videos: ours, against full compute, are far smaller.
    """

    name = "fvd"
    higher_is_better = False
    keys = ("fvd", "kvd")
    description = (
        "Frechet (fvd) and kernel (kvd) distance of I3D features from the references' as a set; equal sets are 0."
    )

    def available(self) -> str | None:
        """The network must be in torch's folder for downloads."""
        return missing_file(self.name, "the I3D network as TorchScript (50 MB)", URL, NETWORK)

    def features(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, np.ndarray]:
        """{"video": [400], "reference": [400]}; empty for clips of fewer than 10 frames, which I3D can not see."""
        del prompt
        check_pair(video, reference, self.name)
        assert reference is not None
        if len(video) < LEAST_FRAMES:
            return {}
        network = _network(weights_file(NETWORK))
        out = {}
        for name, clip in (("video", video), ("reference", reference)):
            pixels_1CTHW = 255 * clip.float().permute(3, 0, 1, 2)[None].cpu()
            with torch.inference_mode():
                features = network(pixels_1CTHW, rescale=True, resize=True, return_features=True)
            out[name] = features.flatten().double().numpy()
        return out

    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """Nothing: one video has no distribution."""
        del video, reference, prompt
        return {}

    def of_set(self, features: Sequence[Mapping[str, np.ndarray]]) -> tuple[dict[str, Interval], list[str]]:
        """{"fvd", "kvd"}; neither below 10 videos, no `fvd` with no more videos than features."""
        n = len(features)
        if n < LEAST_VIDEOS:
            return {}, [
                f"fvd and kvd compare sets of at least {LEAST_VIDEOS} videos of at least {LEAST_FRAMES} frames; there "
                f"are {n} such videos."
            ]
        a_ND, b_ND = (np.stack([video[name] for video in features]) for name in ("video", "reference"))
        found = {"kvd": jackknife(kernel_distance(a_ND, b_ND), n)}
        dimension = a_ND.shape[1]
        if n <= dimension:
            return found, [
                f"fvd needs more than {dimension} videos, as many as it has features: with {n} its covariances are "
                f"singular, and it would mostly say how few videos there were. kvd is unbiased for any number."
            ]
        found["fvd"] = jackknife(lambda rows: frechet_distance(a_ND[rows], b_ND[rows]), n)
        return found, []


def frechet_distance(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """Squared Fréchet distance of two normal distributions with the means and covariances (n - 1) of two sets."""
    means = [x.mean(axis=0) for x in (a_ND, b_ND)]
    # With S1 = A^T A and S2 = B^T B, tr (S1 S2)^(1/2) is the sum of the singular values of A B^T, whatever their ranks.
    roots = [np.asarray(np.linalg.qr((x - m) / math.sqrt(len(x) - 1), mode="r")) for x, m in zip((a_ND, b_ND), means)]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    value = np.square(means[0] - means[1]).sum() + sum(np.square(r).sum() for r in roots) - 2 * shared
    return max(0.0, float(value))


def kernel_distance(a_ND: np.ndarray, b_ND: np.ndarray) -> Callable[[np.ndarray], float]:
    """Rows -> unbiased squared MMD of these rows of two sets that are paired row by row; kernel (x y / D + 1)^3."""
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
    cross = kernel(a_ND, b_ND)
    terms_NN = kernel(a_ND, a_ND) + kernel(b_ND, b_ND) - cross - cross.T
    np.fill_diagonal(terms_NN, 0.0)

    def distance(rows: np.ndarray) -> float:
        n = len(rows)
        return float(terms_NN[np.ix_(rows, rows)].sum() / (n * (n - 1)))

    return distance


def jackknife(statistic: Callable[[np.ndarray], float], n: int) -> Interval:
    """A statistic of `n` videos with its 95 % interval from leaving out one of `NUM_GROUPS` groups at a time."""
    rows = np.arange(n)
    centre = statistic(rows)
    groups = min(NUM_GROUPS, n)
    without = np.array([statistic(rows[rows % groups != group]) for group in range(groups)])
    half = Z_95 * math.sqrt((groups - 1) / groups * float(np.square(without - without.mean()).sum()))
    return Interval(centre, centre - half, centre + half, n)


@lru_cache(maxsize=1)
def _network(path: Path) -> Any:
    return torch.jit.load(str(path), map_location="cpu").eval()
