"""Similarity of frames and prompt in CLIP's space (CLIPSIM of Wu et al. 2021, arXiv:2104.14806).

Shape suffixes: T frames, C channels, H height, W width, D features.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fsframework.metrics.base import METRICS, Metric, check_clip

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_FRAMES_AT_ONCE = 16


@METRICS.register("clip_similarity")
class ClipSimilarity(Metric):
    """Cosine of the CLIP embeddings of each frame and of the prompt, mean over frames.

    Needs no reference: it asks whether the video shows what was asked for, not whether it changed. About 0.3 for a
    fitting video, 0.15 for an unrelated one. CLIP reads 77 tokens; what a longer prompt says after them is not seen.
    """

    name = "clip_similarity"
    needs_reference = False
    description = (
        "Cosine of CLIP (ViT-B/32) embeddings of frames and prompt, mean over frames; 0.3 fits, 0.15 does not."
    )
    checkpoint: ClassVar[str] = "openai/clip-vit-base-patch32"
    """On the Hugging Face hub, looked for in the local cache only; or a folder."""

    def available(self) -> str | None:
        """The checkpoint must be in the local cache."""
        if Path(self.checkpoint).is_dir():
            return None
        from huggingface_hub import try_to_load_from_cache

        files = [try_to_load_from_cache(self.checkpoint, f) for f in ("model.safetensors", "pytorch_model.bin")]
        if any(isinstance(file, str) for file in files):
            return None
        return f"clip_similarity needs a CLIP checkpoint (600 MB), once: hf download {self.checkpoint}"

    def __call__(self, video: Tensor, reference: Tensor | None, prompt: str) -> dict[str, float]:
        """{"clip_similarity": -1 to 1}. Frames of any size: resized to CLIP's, the middle of the longer side kept."""
        del reference
        check_clip(video, "clip_similarity: the video")
        model, tokenizer = _loaded(self.checkpoint)
        text = model.config.text_config
        tokens = tokenizer([prompt], truncation=True, max_length=text.max_position_embeddings, return_tensors="pt")
        side = model.config.vision_config.image_size
        cosines = []
        with torch.inference_mode():
            for frames in video.split(_FRAMES_AT_ONCE):
                out = model(
                    input_ids=tokens["input_ids"],
                    attention_mask=tokens["attention_mask"],
                    pixel_values=preprocess(frames, side).to("cpu"),
                )
                cosines.append(torch.cosine_similarity(out.image_embeds, out.text_embeds, dim=-1))
        return {"clip_similarity": float(torch.cat(cosines).double().mean())}


def preprocess(video_THWC: Tensor, side: int) -> Tensor:
    """CLIP's: the shorter side to `side` pixels (bicubic), the middle square, normalised; float32 [T, 3, side, side]."""
    images_TCHW = video_THWC.float().permute(0, 3, 1, 2)
    height, width = images_TCHW.shape[-2:]
    short = min(height, width)
    size = (side * height // short, side * width // short)
    images_TCHW = interpolate(images_TCHW, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = ((length - side) // 2 for length in size)
    images_TCHW = images_TCHW[..., top : top + side, left : left + side]
    mean, std = (images_TCHW.new_tensor(x)[:, None, None] for x in (_MEAN, _STD))
    return (images_TCHW - mean) / std


@lru_cache(maxsize=1)
def _loaded(checkpoint: str) -> tuple[Any, Any]:
    """The model and its tokenizer, from the local cache."""
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(checkpoint, local_files_only=True).requires_grad_(False).eval()
    return model, AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
