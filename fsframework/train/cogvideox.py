"""What is particular to CogVideoX: its transformer, how it is called, and the pipeline it is shipped in.

Shape suffixes: B clips, C latent channels, F latent frames, H and W latent height and width, L tokens, D text channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.data import bouncing_digits
from fsframework.train.family import FAMILIES, VELOCITY_SCHEDULE, Denoiser, initialize_linears
from fsframework.train.text import TextConfig, build_text_encoder, build_tokenizer, tokenize

DEFAULT_TOKENS = 226
"""Text tokens, padding included, that `CogVideoXPipeline` feeds when its caller does not say `max_sequence_length`."""


@dataclass
class CogVideoXConfig:
    """Size of the transformer; patches of 2 frames x 2 x 2 and rotary positions, as CogVideoX 1.5 has them.

    A clip of 16 latent frames of 8 x 8 is 128 tokens.
    """

    num_layers: int = 12
    num_heads: int = 4
    head_channels: int = 32
    time_channels: int = 64
    patch_size: int = 2
    patch_frames: int = 2
    num_text_tokens: int = 16
    """Text tokens in most training steps: the caption, padded."""
    default_length_share: float = 0.1
    """Share of the steps with whole clips whose text is padded to the pipeline's default of 226 tokens, so that both
    lengths work."""


@FAMILIES.register("cogvideox")
class CogVideoXDenoiser(Denoiser):
    """A `CogVideoXTransformer3DModel` and its text encoder, trained together with v-prediction.

    Text goes the way of `CogVideoXPipeline`: padded to a fixed length, the padding encoded and attended to like words.
    """

    config_class = CogVideoXConfig
    sampling = {"num_frames": bouncing_digits.NUM_FRAMES, "max_sequence_length": 16}

    def __init__(self, config: CogVideoXConfig, text: TextConfig, *, latent_channels: int, latent_size: int) -> None:
        super().__init__()
        from diffusers import CogVideoXTransformer3DModel

        self.config = config
        self.tokenizer = build_tokenizer(max_tokens=DEFAULT_TOKENS)
        self.text_encoder = build_text_encoder(text, len(self.tokenizer))
        self.transformer = CogVideoXTransformer3DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.head_channels,
            in_channels=latent_channels,
            out_channels=latent_channels,
            time_embed_dim=config.time_channels,
            text_embed_dim=text.width,
            num_layers=config.num_layers,
            sample_width=latent_size,
            sample_height=latent_size,
            sample_frames=bouncing_digits.NUM_FRAMES,
            patch_size=config.patch_size,
            patch_size_t=config.patch_frames,
            temporal_compression_ratio=1,
            max_text_seq_length=DEFAULT_TOKENS,
            use_rotary_positional_embeddings=True,
        )
        self._initialize()

    def _initialize(self) -> None:
        transformer = self.transformer
        initialize_linears(transformer)
        for block in transformer.transformer_blocks:
            for norm in (block.norm1, block.norm2):
                nn.init.normal_(norm.linear.weight, std=0.02)
                for gate in norm.linear.bias.data.chunk(6)[2::3]:  # shift, scale, gate of the video, then of the text
                    gate.fill_(0.1)
        nn.init.normal_(transformer.norm_out.linear.weight, std=0.02)
        nn.init.zeros_(transformer.proj_out.weight)

    def draw_conditions(self, generator: torch.Generator, latent_frames: int) -> dict[str, Any]:
        """The number of text tokens of one step; always the short one with images, where text would be most of it."""
        share = self.config.default_length_share if latent_frames >= self.num_frames else 0.0
        default_length = float(torch.rand((), generator=generator)) < share
        return {"num_text_tokens": DEFAULT_TOKENS if default_length else self.config.num_text_tokens}

    def encode_text(self, prompts: list[str], num_tokens: int) -> Tensor:
        """Embeddings [B, L, D] of captions or "" (unconditional), without an attention mask, as the pipeline does."""
        ids_BL, _ = tokenize(self.tokenizer, prompts, num_tokens)
        embeddings: Tensor = self.text_encoder(ids_BL)[0]
        return embeddings

    def forward(self, noisy_BCFHW: Tensor, timesteps_B: Tensor, prompts: list[str], **conditions: Any) -> Tensor:
        """The predicted velocity, [B, C, F, H, W]; F is a multiple of the patch's frames.

        `num_text_tokens` may be among the conditions; default: the config's.
        """
        num_tokens = conditions.get("num_text_tokens", self.config.num_text_tokens)
        output_BFCHW: Tensor = self.transformer(
            hidden_states=noisy_BCFHW.transpose(1, 2),
            timestep=timesteps_B,
            encoder_hidden_states=self.encode_text(prompts, num_tokens),
            image_rotary_emb=self._rotary_tables(*noisy_BCFHW.shape[2:]),
            return_dict=False,
        )[0]
        return output_BFCHW.transpose(1, 2)

    def _rotary_tables(self, num_frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """As `CogVideoXPipeline` makes them for a model with patches in time."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        patch = self.config.patch_size
        grid = (height // patch, width // patch)
        tables: Any = get_3d_rotary_pos_embed(
            embed_dim=self.config.head_channels,
            crops_coords=None,
            grid_size=grid,
            temporal_size=num_frames // self.config.patch_frames,
            grid_type="slice",
            max_size=grid,
        )
        cosine, sine = tables
        return cosine, sine

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices of attention and feed-forward; those that modulate stay with AdamW."""
        return [
            p
            for block in self.transformer.transformer_blocks
            for name, p in block.named_parameters()
            if p.ndim == 2 and not name.startswith("norm")
        ]

    def scheduler(self) -> Any:
        """DDIM with v-prediction and zero terminal SNR; no shift of the signal-to-noise ratio."""
        from diffusers import CogVideoXDDIMScheduler

        return CogVideoXDDIMScheduler(**VELOCITY_SCHEDULE, snr_shift_scale=1.0)

    def pipeline(self, autoencoder: Any) -> Any:
        """A `CogVideoXPipeline` around these very modules; the autoencoder of frames becomes one of videos."""
        from diffusers import CogVideoXPipeline

        from fsframework.train.cogvideox_autoencoder import to_video_autoencoder

        pipe: Any = CogVideoXPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=to_video_autoencoder(autoencoder),
            transformer=self.transformer,
            scheduler=self.scheduler(),
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe
