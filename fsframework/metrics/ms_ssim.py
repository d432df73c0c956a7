"""Multi-scale structural similarity (Wang, Simoncelli, Bovik 2003) against the reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fsframework.metrics.base import METRICS, Metric, check_pair
from fsframework.metrics.ssim import WINDOW, as_images, check_size, ssim_maps

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""The paper's exponents, finest scale first."""


@METRICS.register("ms_ssim")
class MultiScaleSSIM(Metric):
    """Contrast-structure at every scale and luminance at the coarsest, multiplied with the paper's exponents.

    Frames are halved while the 11 x 11 window still fits: five scales from 176 pixels on, two at 32. With fewer than
    five the exponents are scaled to sum to 1, so values at different resolutions are not comparable.
    """

    name = "ms_ssim"
    description = "Multi-scale structural similarity, as many of five scales as fit the frame; identical is 1."

    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """{"ms_ssim": 0 to 1}, the mean over frames and channels. Frames must be at least 11 x 11."""
        del prompt
        images, references = (as_images(x) for x in check_pair(video, reference, self.name))
        check_size(images, WINDOW, self.name)
        side = min(images.shape[-2:])
        num_scales = sum(side // 2**scale >= WINDOW for scale in range(len(WEIGHTS)))
        weights = [weight / sum(WEIGHTS[:num_scales]) for weight in WEIGHTS[:num_scales]]
        product = torch.ones(len(images), dtype=images.dtype, device=images.device)
        for scale, weight in enumerate(weights):
            luminance, contrast = ssim_maps(images, references)
            last = scale == num_scales - 1
            factor = (luminance * contrast if last else contrast).mean(dim=(1, 2, 3))
            product = product * factor.clamp(min=0) ** weight  # a negative mean has no real power
            images, references = avg_pool2d(images, 2), avg_pool2d(references, 2)
        return {"ms_ssim": float(product.mean())}
