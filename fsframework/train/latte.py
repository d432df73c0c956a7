"""What is particular to Latte: its transformer, how it is called, and the pipeline it is shipped in.

Shape suffixes: B clips, C latent channels, F frames, H and W latent height and width, L tokens, D text channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.data import bouncing_digits
from fsframework.train.family import FAMILIES, VELOCITY_SCHEDULE, Denoiser, generators, initialize_linears
from fsframework.train.text import TextConfig, build_text_encoder, build_tokenizer, tokenize


@dataclass
class LatteConfig:
    """Size of the transformer; the latent is 8 x 8 x 4, so patches of 2 give 16 tokens a frame."""

    num_layers: int = 8
    """Spatial blocks, and as many temporal ones; they alternate."""
    num_heads: int = 4
    head_channels: int = 32
    patch_size: int = 2
    temporal_starts_as_identity: bool = True
    """Zero the output projections of the temporal blocks, so that a model of images is a model of still videos."""


@FAMILIES.register("latte")
class LatteDenoiser(Denoiser):
    """A `LatteTransformer3DModel` and its text encoder, trained together with v-prediction.

    Text goes the way of `LattePipeline` with one prompt: the caption's embeddings are cropped to its real tokens, and
    the unconditional embeddings are those of "" at the same number of positions, padding included.
    """

    config_class = LatteConfig
    sampling = {
        "video_length": bouncing_digits.NUM_FRAMES,
        "height": bouncing_digits.CANVAS_PIXELS,
        "width": bouncing_digits.CANVAS_PIXELS,
        "clean_caption": False,  # needs two more packages and changes nothing in these captions
    }

    def __init__(self, config: LatteConfig, text: TextConfig, *, latent_channels: int, latent_size: int) -> None:
        super().__init__()
        from diffusers import LatteTransformer3DModel

        self.tokenizer = build_tokenizer(max_tokens=120)
        self.text_encoder = build_text_encoder(text, len(self.tokenizer))
        width = config.num_heads * config.head_channels
        self.transformer = LatteTransformer3DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.head_channels,
            in_channels=latent_channels,
            # LattePipeline keeps the first half of the channels, as for a model with learned variance. The other half
            # is never trained and stays zero.
            out_channels=2 * latent_channels,
            num_layers=config.num_layers,
            cross_attention_dim=width,
            attention_bias=True,
            sample_size=latent_size,
            patch_size=config.patch_size,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            caption_channels=text.width,
            video_length=bouncing_digits.NUM_FRAMES,
        )
        self._initialize(config)

    def _initialize(self, config: LatteConfig) -> None:
        transformer = self.transformer
        initialize_linears(transformer)
        nn.init.xavier_uniform_(transformer.pos_embed.proj.weight.view(transformer.pos_embed.proj.out_channels, -1))
        nn.init.zeros_(transformer.pos_embed.proj.bias)
        nn.init.normal_(transformer.adaln_single.linear.weight, std=0.02)
        nn.init.zeros_(transformer.proj_out.weight)
        if config.temporal_starts_as_identity:
            for block in transformer.temporal_transformer_blocks:
                nn.init.zeros_(block.attn1.to_out[0].weight)
                nn.init.zeros_(block.ff.net[-1].weight)

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Embeddings [B, L, D] of captions or "" (unconditional); all captions have the same number of tokens L."""
        num_tokens = len(bouncing_digits.caption(*bouncing_digits.all_pairs()[0]).split()) + 1
        ids_BL, mask_BL = tokenize(self.tokenizer, prompts, num_tokens)
        embeddings: Tensor = self.text_encoder(ids_BL, attention_mask=mask_BL)[0]
        return embeddings

    def forward(self, noisy_BCFHW: Tensor, timesteps_B: Tensor, prompts: list[str], **conditions: Any) -> Tensor:
        """The predicted velocity, [B, C, F, H, W]; with one frame the temporal blocks are not run."""
        output: Tensor = self.transformer(
            hidden_states=noisy_BCFHW,
            timestep=timesteps_B,
            encoder_hidden_states=self.encode_text(prompts),
            enable_temporal_attentions=noisy_BCFHW.shape[2] > 1,
            return_dict=False,
        )[0]
        return output[:, : noisy_BCFHW.shape[1]]

    def temporal_parameters(self) -> list[nn.Parameter]:
        """The parameters that only videos train."""
        return list(self.transformer.temporal_transformer_blocks.parameters())

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices inside the blocks, those that Muon is meant for."""
        transformer = self.transformer
        blocks = [*transformer.transformer_blocks, *transformer.temporal_transformer_blocks]
        return [p for block in blocks for name, p in block.named_parameters() if p.ndim == 2 and "table" not in name]

    def scheduler(self) -> Any:
        """DDIM with v-prediction and zero terminal SNR."""
        from diffusers import DDIMScheduler

        return DDIMScheduler(**VELOCITY_SCHEDULE)

    def pipeline(self, autoencoder: Any) -> Any:
        """A `LattePipeline` around these very modules (not copies)."""
        from diffusers import LattePipeline

        pipe: Any = LattePipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=autoencoder,
            transformer=self.transformer,
            scheduler=self.scheduler(),
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @torch.no_grad()
    def generate(
        self,
        autoencoder: Any,
        prompts: list[str],
        seeds: list[int],
        *,
        num_steps: int,
        guidance_scale: float,
        num_frames: int,
    ) -> Tensor:
        """One video of 16 frames per prompt and seed, float [B, F, H, W, C] in [0, 1]; unrelated if `num_frames` is 1.

        Embeddings are handed over ready made because LattePipeline treats a list of prompts differently from each
        alone (it masks to 120 tokens where it crops for one).
        """
        frames = self.pipeline(autoencoder)(
            negative_prompt=None,
            prompt_embeds=self.encode_text(prompts),
            negative_prompt_embeds=self.encode_text([""] * len(prompts)),
            num_inference_steps=num_steps,
            guidance_scale=guidance_scale,
            generator=generators(seeds),
            output_type="pt",
            enable_temporal_attentions=num_frames > 1,
            **self.sampling,
        ).frames
        return frames.movedim(2, -1).clamp(0, 1)
