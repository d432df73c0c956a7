"""What is particular to Open-Sora 1.2: STDiT3, how it is called, rectified flow, and the pipeline it is shipped in.

Shape suffixes: B clips, C latent channels, F latent frames, T frames, H and W latent height and width, L tokens, D text
channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsframework.data import bouncing_digits
from fsframework.train.autoencoder import look_up
from fsframework.train.family import FAMILIES, Denoiser
from fsframework.train.opensora_autoencoder import FRAMES, TemporalCode, fit_temporal_code, to_video_autoencoder
from fsframework.train.text import TextConfig, build_text_encoder, build_tokenizer, tokenize

NUM_FRAMES = 17
"""Pixel frames of a clip: one chunk of the autoencoder, five latent frames."""
QUALITY_WORDS = "aesthetic score: 6.5."
"""What the pipeline appends to every prompt."""
VIDEO_FPS, IMAGE_FPS = 24, 120
"""Frame rates that the pipeline tells the transformer."""


@dataclass
class OpenSoraConfig:
    """Size of the transformer; a clip of 5 latent frames of 8 x 8 in patches of 2 is 80 tokens."""

    depth: int = 8
    """Spatial blocks, and as many temporal ones; they alternate."""
    num_heads: int = 4
    head_channels: int = 32
    latent_channels: int = 12
    """Channels of a latent frame, which codes four frames of 4 channels; at most 16."""
    patch_size: int = 2
    num_text_tokens: int = 24
    """Longest caption in tokens; shorter ones are padded and the padding is masked."""


@FAMILIES.register("opensora")
class OpenSoraDenoiser(Denoiser):
    """An `STDiT3` and its text encoder, trained together by rectified flow: the prediction is clean minus noise.

    Text goes the way of `OpenSoraPipeline`: quality words appended, padded and masked; the unconditional branch is a
    learned null caption, cut to the prompt's tokens.
    """

    config_class = OpenSoraConfig
    num_frames = NUM_FRAMES
    sampling = {
        "num_frames": NUM_FRAMES,
        "height": bouncing_digits.CANVAS_PIXELS,
        "width": bouncing_digits.CANVAS_PIXELS,
    }

    def __init__(self, config: OpenSoraConfig, text: TextConfig, *, latent_channels: int, latent_size: int) -> None:
        super().__init__()
        from fsframework.models.opensora_1_2 import STDiT3

        del latent_size  # positions follow the size in pixels
        self.config = config
        self.tokenizer = build_tokenizer(config.num_text_tokens, more=QUALITY_WORDS)
        self.text_encoder = build_text_encoder(text, len(self.tokenizer))
        self.null_caption = nn.Parameter(torch.randn(config.num_text_tokens, text.width) * 0.5)
        self.transformer = STDiT3(
            in_channels=config.latent_channels,
            patch_size=(1, config.patch_size, config.patch_size),
            hidden_size=config.num_heads * config.head_channels,
            depth=config.depth,
            num_heads=config.num_heads,
            input_sq_size=bouncing_digits.CANVAS_PIXELS,
            caption_channels=text.width,
            model_max_length=config.num_text_tokens,
            class_dropout_prob=0.0,  # captions are dropped before they come here
        )
        nn.init.normal_(self.transformer.t_block[1].weight, std=0.02)
        nn.init.zeros_(self.transformer.final_layer.linear.weight)
        stacked = FRAMES * latent_channels
        self.register_buffer("code_encode", torch.zeros(config.latent_channels, stacked))
        self.register_buffer("code_decode", torch.zeros(stacked, config.latent_channels))

    @property
    def code(self) -> TemporalCode:
        """The code over time that `prepare` fits."""
        return TemporalCode(self.code_encode, self.code_decode)  # type: ignore[arg-type]

    def prepare(self, latents_NYXCHW: Tensor) -> None:
        """Fit the code over time to 400 training clips of 16 frames."""
        plan = bouncing_digits.sample_plan(np.random.default_rng(0), 400, num_frames=16)
        code = fit_temporal_code(look_up(plan, latents_NYXCHW), self.config.latent_channels)
        self.code_encode.copy_(code.encode)  # type: ignore[operator]
        self.code_decode.copy_(code.decode)  # type: ignore[operator]

    def clip_latents(self, frames_BCTHW: Tensor) -> Tensor:
        """One latent frame for the first frame and for every four after it."""
        return self.code.codes(frames_BCTHW)

    def draw_timesteps(self, uniform_B: Tensor, power: float) -> Tensor:
        """Timesteps 1000 u ** power, not rounded; power < 1 leans to high noise."""
        return 1000 * uniform_B**power

    def noisy_and_target(self, clean_BCFHW: Tensor, noise_BCFHW: Tensor, timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
        """A point on the straight line from noise to the clean latent, and the line's direction."""
        share_B1 = (timesteps_B.float() / 1000).view(-1, 1, 1, 1, 1)
        return torch.lerp(clean_BCFHW, noise_BCFHW, share_B1), clean_BCFHW - noise_BCFHW

    def encode_text(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings [B, L, D] and mask [B, L] of captions or "" (unconditional); all captions have as many tokens."""
        caption = bouncing_digits.caption(*bouncing_digits.all_pairs()[0])
        texts = [f"{prompt or caption} {QUALITY_WORDS}" for prompt in prompts]
        ids_BL, mask_BL = tokenize(self.tokenizer, texts, self.config.num_text_tokens)
        embeddings: Tensor = self.text_encoder(ids_BL, attention_mask=mask_BL)[0]
        is_null_B11 = torch.tensor([prompt == "" for prompt in prompts])[:, None, None]
        return torch.where(is_null_B11, self.null_caption, embeddings), mask_BL

    def forward(self, noisy_BCFHW: Tensor, timesteps_B: Tensor, prompts: list[str], **conditions: Any) -> Tensor:
        """The predicted direction from noise to the clean latent, [B, C, F, H, W]."""
        text_BLD, mask_BL = self.encode_text(prompts)
        pixels = torch.tensor([float(bouncing_digits.CANVAS_PIXELS)])
        output: Tensor = self.transformer(
            noisy_BCFHW,
            timesteps_B.float(),
            text_BLD[:, None],
            mask_BL,
            fps=torch.tensor([float(VIDEO_FPS if noisy_BCFHW.shape[2] > 1 else IMAGE_FPS)]),
            height=pixels,
            width=pixels,
            return_dict=False,
        )[0]
        return output[:, : noisy_BCFHW.shape[1]]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices inside the blocks."""
        blocks = [*self.transformer.spatial_blocks, *self.transformer.temporal_blocks]
        return [p for block in blocks for name, p in block.named_parameters() if p.ndim == 2 and "table" not in name]

    def scheduler(self) -> Any:
        """Even steps. The published shift of the times is made for 512 pixels and would rush through the noise here."""
        from fsframework.models.opensora_1_2 import RFlowScheduler

        return RFlowScheduler(use_timestep_transform=False)

    @torch.no_grad()
    def pipeline(self, autoencoder: Any) -> Any:
        """An `OpenSoraPipeline` around these very modules; the autoencoder of frames becomes one of videos."""
        from fsframework.models.opensora_1_2 import OpenSoraPipeline

        self.transformer.y_embedder.y_embedding.copy_(self.null_caption)
        pipe: Any = OpenSoraPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=to_video_autoencoder(autoencoder, self.code),
            transformer=self.transformer,
            scheduler=self.scheduler(),
            clean_caption=False,  # needs two more packages and changes nothing in these captions
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe
