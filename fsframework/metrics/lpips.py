"""Learned perceptual image patch similarity (Zhang, Isola, Efros, Shechtman, Wang 2018, arXiv:1801.03924), AlexNet, v0.1.

Shape suffixes: T frames, C channels, H height, W width.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from fsframework.metrics.base import METRICS, Metric
from fsframework.metrics.images import mean_over_frames
from fsframework.metrics.weights import missing_file, weights_file

BACKBONE = "alexnet-owt-7be5be79.pth"
URL = f"https://download.pytorch.org/models/{BACKBONE}"
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""What pixels in -1 to 1 are normalised with."""


@METRICS.register("lpips")
class LPIPS(Metric):
    """Distance of AlexNet's activations after each of its five rectifiers, with the weights learned by the authors.

    The network is AlexNet's convolutions, so torchvision is not needed; its ImageNet weights are a file of 233 MB. The
    authors' linear weights come with torchmetrics.
    """

    name = "lpips"
    higher_is_better = False
    description = "Learned perceptual distance (AlexNet, v0.1), mean over frames; identical is 0, 0.1 is visible."

    def available(self) -> str | None:
        """The linear weights lie in torchmetrics, AlexNet's in torch's folder for downloads."""
        if _linear_weights() is None:
            return "lpips takes the authors' linear weights from torchmetrics: pip install torchmetrics"
        return missing_file(self.name, "AlexNet's ImageNet weights (233 MB)", URL, BACKBONE)

    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """{"lpips": 0 to about 1}. Frames must be at least 32 x 32."""
        del prompt
        linear = _linear_weights()
        assert linear is not None
        network = _network(weights_file(BACKBONE), linear)
        return {"lpips": mean_over_frames(network, video, reference, self.name, 32)}


class AlexNetDistance(nn.Module):
    """AlexNet's five convolutions with a weight for each channel of each."""

    def __init__(self) -> None:
        super().__init__()
        relu = nn.ReLU
        # The names are those of torchvision's `features`, so that its weights fit.
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), relu(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, 1, 2), relu(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, 1, 1), relu(),
            nn.Conv2d(384, 256, 3, 1, 1), relu(),
            nn.Conv2d(256, 256, 3, 1, 1), relu(),
        )  # fmt: skip
        self.linear = nn.ParameterList([nn.Parameter(torch.ones(1, c, 1, 1)) for c in (64, 192, 384, 256, 256)])

    def forward(self, video_TCHW: Tensor, reference_TCHW: Tensor) -> Tensor:
        """Distance of each pair of frames in 0 to 255, [T]."""
        total = video_TCHW.new_zeros(len(video_TCHW), dtype=torch.float64)
        for a, b, weight in zip(self._activations(video_TCHW), self._activations(reference_TCHW), self.linear):
            total += ((_unit(a) - _unit(b)).square() * weight).sum(1).mean((1, 2)).double()
        return total

    def _activations(self, images_TCHW: Tensor) -> list[Tensor]:
        shift, scale = (images_TCHW.new_tensor(x)[:, None, None] for x in (_SHIFT, _SCALE))
        x = ((images_TCHW / 127.5 - 1 - shift) / scale).float()
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found


def _unit(activations_TCHW: Tensor) -> Tensor:
    """Each place's channels scaled to length 1."""
    return activations_TCHW / (activations_TCHW.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _linear_weights() -> Path | None:
    """The file of the authors' linear weights in torchmetrics, found without importing it."""
    spec = importlib.util.find_spec("torchmetrics")
    for folder in spec.submodule_search_locations or [] if spec is not None else []:
        path = Path(folder) / "functional" / "image" / "lpips_models" / "alex.pth"
        if path.is_file():
            return path
    return None


@lru_cache(maxsize=1)
def _network(backbone: Path, linear: Path) -> nn.Module:
    network = AlexNetDistance()
    weights = torch.load(backbone, map_location="cpu", weights_only=True)
    network.features.load_state_dict(
        {k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features.")}
    )
    learned = torch.load(linear, map_location="cpu", weights_only=True)
    for index, parameter in enumerate(network.linear):
        parameter.data = learned[f"lin{index}.model.1.weight"].clone()
    return network.requires_grad_(False).eval()
