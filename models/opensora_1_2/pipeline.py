"""`OpenSoraPipeline`: text to video with Open-Sora 1.2, in the manner of diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from fsframework.models.opensora_1_2 import checks, text
from fsframework.models.opensora_1_2.frame_mask import FrameMask
from fsframework.models.opensora_1_2.published import published_config
from fsframework.models.opensora_1_2.reference import with_reference
from fsframework.models.opensora_1_2.scheduler import RFlowScheduler, check_num_frames
from fsframework.models.opensora_1_2.sizes import num_frames_of, resolve_size
from fsframework.models.opensora_1_2.transformer import STDiT3
from fsframework.models.opensora_1_2.vae import OpenSoraVAE

Generator = torch.Generator | list[torch.Generator] | None


@dataclass
class OpenSoraPipelineOutput(BaseOutput):
    """`frames`: as `output_type` says."""

    frames: Any


class OpenSoraPipeline(DiffusionPipeline):
    """Text to video with Open-Sora 1.2.

    Args:
        tokenizer: of the text encoder.
        text_encoder: a `T5EncoderModel`.
        vae: the video VAE.
        transformer: predicts the velocity.
        scheduler: a `RFlowScheduler`.
        aesthetic_score: appended to prompts unless a call says otherwise; None for a model trained without.
        clean_caption: whether prompts are cleaned as the published model's training captions were.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"  # type: ignore[assignment]
    _callback_tensor_inputs = ["latents", "prompt_embeds"]
    _optional_components = ["tokenizer", "text_encoder"]
    vae: OpenSoraVAE
    transformer: STDiT3
    scheduler: RFlowScheduler

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        vae: OpenSoraVAE,
        transformer: STDiT3,
        scheduler: RFlowScheduler,
        aesthetic_score: float | None = 6.5,
        clean_caption: bool = True,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
        )
        self.register_to_config(aesthetic_score=aesthetic_score, clean_caption=clean_caption)
        self.video_processor = VideoProcessor(vae_scale_factor=8 if vae is None else vae.spatial_factor)
        self._guidance_scale = 7.0
        self._num_timesteps = 0
        self._current_timestep: Tensor | None = None
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a pipeline folder or repository; or, given the published transformer, put the published pipeline together.

        In the second case `vae`, `text_encoder` and `tokenizer` may be models, folders or repositories; left out, they are
        the published ones. `torch_dtype` and the hub's arguments apply to all, `revision` to the transformer.
        """
        config = published_config(str(pretrained_model_name_or_path), kwargs)
        if config is None or config.get("model_type") != STDiT3.published_type:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        from fsframework.models.opensora_1_2.assemble import assemble

        return assemble(cls, str(pretrained_model_name_or_path), kwargs)

    @property
    def guidance_scale(self) -> float:
        """Of the call in progress."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether a step's batch has a conditional and an unconditional half, in this order."""
        return self._guidance_scale != 1.0

    @property
    def num_timesteps(self) -> int:
        """Steps of the call in progress."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        """The time of the step in progress; None between calls."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to skip the remaining steps."""
        return self._interrupt

    def encode_prompt(
        self,
        prompt: str | list[str],
        aesthetic_score: float | None = None,
        motion_score: float | None = None,
        camera_motion: str | None = None,
        clean_caption: bool | None = None,
        max_sequence_length: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`prompt_embeds` [B, L, C] and `prompt_attention_mask` [B, L] for a call; arguments as there."""
        settings = cast(Any, self.config)
        prepared = text.prepare(
            checks.prompts_of(prompt),
            settings.clean_caption if clean_caption is None else clean_caption,
            aesthetic_score=(settings.aesthetic_score if aesthetic_score is None else aesthetic_score) or None,
            motion_score=motion_score,
            camera_motion=camera_motion,
        )
        length = max_sequence_length or self.transformer.max_text_tokens
        return text.encode(self.tokenizer, self.text_encoder, prepared, length, self._execution_device)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | str | None = None,
        *,
        resolution: str | None = None,
        aspect_ratio: str = "9:16",
        fps: float | None = None,
        num_inference_steps: int = 30,
        timesteps: Sequence[float] | None = None,
        guidance_scale: float = 7.0,
        aesthetic_score: float | None = None,
        motion_score: float | None = None,
        camera_motion: str | None = None,
        clean_caption: bool | None = None,
        num_videos_per_prompt: int = 1,
        max_sequence_length: int | None = None,
        generator: Generator = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        reference_video: Any = None,
        reference_start: int = 0,
        frame_weights: Sequence[float] | Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Generate videos.

        Args:
            prompt: one or several; their lengths may differ.
            height: in pixels; the video's is the next lower multiple of 8.
            width: see height.
            num_frames: 1, or at least 17 (best a multiple of it), or a name such as `2s`, `4s`. Default 51.
            resolution: `144p` to `720p` instead of height and width; the default is 240p.
            aspect_ratio: height to width, for `resolution`.
            fps: frames per second the model is told; default 24, or 120 for a single frame.
            num_inference_steps: number of denoising steps.
            timesteps: times of your own, falling, each in (0, 1000]; they replace the number of steps.
            guidance_scale: weight of the prompt over none, 1 is no guidance. Higher follows the prompt more closely.
            aesthetic_score: appended to the prompt; None is the pipeline's own, 0 is none.
            motion_score: appended to the prompt, if given.
            camera_motion: appended to the prompt, if given.
            clean_caption: None is the pipeline's own setting.
            num_videos_per_prompt: videos of each prompt.
            max_sequence_length: prompts are cut to this many tokens; default the transformer's longest caption.
            generator: for the noise, or a list of one for each video. Noise is float32 whatever the model's precision.
            latents: the first noise, [B, C, T, H, W] of `vae.latent_size`.
            prompt_embeds: text states [B, L, C] instead of `prompt`.
            prompt_attention_mask: [B, L], ones for text followed by zeros for padding; None: all is text.
            reference_video: frames to begin from or to keep: a list of pictures, or [T, C, H, W] or [B, T, C, H, W] in 0
                to 1, of the size to be generated; one for all videos or one for each.
            reference_start: the latent frame that the reference's first goes to.
            frame_weights: [T_latent] or [B, T_latent] in 0 to 1, see `FrameMask`. Default with a reference: 0 where it lies,
                1 elsewhere.
            output_type: `np`, `pt` ([B, T, C, H, W] in 0 to 1), `pil` or `latent`.
            return_dict: give an `OpenSoraPipelineOutput` rather than a tuple.
            callback_on_step_end: called as (pipeline, step, timestep, tensors); may return tensors to go on with, but
                not states of another length where prompts of unequal lengths are masked.
            callback_on_step_end_tensor_inputs: which tensors it gets: `latents`, `prompt_embeds`.

        Raises:
            ValueError: arguments that exclude one another, are unknown by name, or do not fit in shape.
        """
        least = self.vae.spatial_factor * max(self.transformer.patch_size[1:])
        height, width = resolve_size(height, width, resolution, aspect_ratio, least)
        num_frames = num_frames_of(51 if num_frames is None else num_frames)
        if self.scheduler.use_timestep_transform:
            check_num_frames(num_frames)
        can_encode = self.tokenizer is not None and self.text_encoder is not None
        batch = checks.num_prompts_of(prompt, prompt_embeds, can_encode) * num_videos_per_prompt
        checks.check_generators(generator, batch)
        checks.check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        shape = (batch, self.vae.latent_channels, *self.vae.latent_size(num_frames, height, width))
        checks.check_latents(latents, shape)
        self._guidance_scale, self._interrupt = guidance_scale, False
        device = self._execution_device

        if prompt_embeds is None:
            assert prompt is not None
            prompt_embeds, prompt_attention_mask = self.encode_prompt(
                prompt, aesthetic_score=aesthetic_score, motion_score=motion_score, camera_motion=camera_motion,
                clean_caption=clean_caption, max_sequence_length=max_sequence_length,
            )  # fmt: skip
        prompt_embeds, mask = text.trim(prompt_embeds, prompt_attention_mask, self.transformer.max_text_tokens)
        prompt_embeds = text.for_each_video(prompt_embeds, num_videos_per_prompt).to(device)
        mask = None if mask is None else text.for_each_video(mask, num_videos_per_prompt).to(device)

        noise = randn_tensor(shape, generator, device, torch.float32) if latents is None else latents
        latents = noise.to(device, torch.float32)
        latents, weights = with_reference(self.vae, latents, reference_video, reference_start, frame_weights, generator)
        frames = None if weights is None else FrameMask(weights, self.scheduler.num_train_timesteps)

        steps: dict[str, Any] = (
            {"num_inference_steps": num_inference_steps} if timesteps is None else {"timesteps": timesteps}
        )
        self.scheduler.set_timesteps(device=device, height=height, width=width, num_frames=num_frames, **steps)
        self._num_timesteps = len(self.scheduler.timesteps)
        conditions = self._conditions(
            batch, height, width, (24 if num_frames > 1 else 120) if fps is None else fps, device
        )
        with self.progress_bar(total=self._num_timesteps) as progress:
            for index, t in enumerate(self.scheduler.timesteps):
                if self._interrupt:
                    continue
                self._current_timestep = t
                moving = None
                if frames is not None:
                    noise = randn_tensor(latents.shape, generator, device, torch.float32)
                    latents, moving = frames.begin_step(latents, noise, t)
                velocity = self._velocity(latents, t, prompt_embeds, mask, moving, conditions)
                latents = self.scheduler.step(velocity, t, latents, frame_mask=moving, return_dict=False)[0]
                if callback_on_step_end is not None:
                    available = {"latents": latents, "prompt_embeds": prompt_embeds}
                    given = {name: available[name] for name in callback_on_step_end_tensor_inputs}
                    changed = {**available, **(callback_on_step_end(self, index, t, given) or {})}
                    latents, prompt_embeds = changed["latents"], changed["prompt_embeds"]
                    checks.check_callback_embeds(prompt_embeds, mask)
                progress.update()
        self._current_timestep = None

        video: Any = latents
        if output_type != "latent":
            decoded = self.vae.decode(latents.to(self.vae.dtype), num_frames)
            video = self.video_processor.postprocess_video(decoded.float(), output_type)
        self.maybe_free_model_hooks()
        return OpenSoraPipelineOutput(frames=video) if return_dict else (video,)

    def _velocity(
        self,
        latents: Tensor,
        t: Tensor,
        embeds: Tensor,
        mask: Tensor | None,
        moving: Tensor | None,
        conditions: dict[str, Tensor],
    ) -> Tensor:
        """The guided velocity [B, C, T, H, W], float32."""
        y = embeds[:, None]
        if self.do_classifier_free_guidance:
            # The caption that stands for none is cut to each prompt's tokens, as in the original: it shares its mask.
            null = self.transformer.y_embedder.null_caption(y.shape[0], y.shape[2]).to(y)
            latents, y = torch.cat([latents, latents]), torch.cat([y, null])
            mask = None if mask is None else torch.cat([mask, mask])
            moving = None if moving is None else torch.cat([moving, moving])
        with self.transformer.cache_context("cond_uncond"):
            predicted = self.transformer(
                x=latents, timestep=t.expand(latents.shape[0]), y=y, mask=mask, x_mask=moving,
                **{name: value[: latents.shape[0]] for name, value in conditions.items()}, return_dict=False,
            )[0]  # fmt: skip
        velocity: Tensor = predicted[:, : latents.shape[1]]
        if not self.do_classifier_free_guidance:
            return velocity
        cond, uncond = velocity.chunk(2)
        return uncond + self._guidance_scale * (cond - uncond)

    def _conditions(self, batch: int, height: int, width: int, fps: float, device: Any) -> dict[str, Tensor]:
        """What the model is told about the video besides the text, for both guidance halves; rounded as times are."""
        dtype = self.scheduler.size_dtype
        values = {"height": height, "width": width, "fps": fps}
        return {n: torch.full((2 * batch,), float(v), dtype=dtype, device=device) for n, v in values.items()}
