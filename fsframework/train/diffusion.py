"""The denoiser's training stages: latents of single frames, then of clips.

Shape suffixes: B clips, C latent channels, F frames, H and W latent height and width, N digit images, Y and X grid
positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsframework.data import bouncing_digits
from fsframework.train.autoencoder import look_up, to_model_range
from fsframework.train.stage import MetricsFile, StageModule


@dataclass
class DenoiserStageConfig:
    """One stage of the denoiser."""

    name: str = "images"
    num_frames: int = 1
    """Frames per clip; few frames (one, where the family can) train on images."""
    batch_clips: int = 64
    image_share: float = 0.0
    """Share of the steps that train on images instead: more captions for the same work."""
    image_frames: int = 1
    """Frames of an image in those steps."""
    image_clips: int = 64
    """Images per step in those steps."""
    num_steps: int = 1000
    optimizer: str = "muon"
    """"muon" (matrices in blocks by Muon, the rest by AdamW) or "adamw" for all."""
    learning_rate: float = 1e-3
    adamw_learning_rate: float = 1e-3
    """For the parameters that Muon does not handle; not used by "adamw"."""
    trainable: str = "all"
    """"all", or "temporal": only the parameters that single images do not train."""
    timestep_power: float = 1.0
    """Timesteps are 1000 * u ** power with u uniform; below 1 draws them towards high noise."""
    caption_dropout: float = 0.1
    """Share of the clips whose caption is replaced by the empty prompt, the unconditional branch."""
    partial_captions: float = 0.0
    """Share of the clips whose caption lacks the digit or the motion, so that the two are learned apart."""
    warmup_steps: int = 50
    decay_fraction: float = 0.0
    """Share of the steps, at the end, over which the learning rate falls linearly to 0."""
    ema_decay: float = 0.995
    clip_norm: float = 1.0
    log_every: int = 50
    evaluate_every: int = 250
    """Steps between measurements of the loss on clips of evaluation digits."""
    sample_every: int = 1000
    """Steps between measurements of prompt adherence on generated clips."""
    compile: bool = False
    """torch.compile the transformer: two minutes of start-up, then about a quarter faster on CPU."""


@dataclass
class MonitorConfig:
    """What is generated while training, to see whether it works."""

    num_clips: int = 20
    num_steps: int = 20
    guidance_scale: float = 4.0


def partial_captions(captions: list[str], rng: np.random.Generator, share: float) -> list[str]:
    """Captions of which a share says "digit 6 is moving" or "digit is moving up and down", half of each."""
    changed = []
    for caption, draw in zip(captions, rng.random(len(captions))):
        words = caption.split()
        digit_only, motion_only = " ".join(words[:4]), " ".join(words[:1] + words[2:])
        changed.append(digit_only if draw < share / 2 else motion_only if draw < share else caption)
    return changed


class DenoiserStage(StageModule):
    """Trains a `Denoiser` of any family on latents looked up in a table of single frames."""

    evaluation_timesteps = (500, 800, 900, 975)

    def __init__(
        self,
        denoiser: Any,
        config: DenoiserStageConfig,
        monitor: MonitorConfig,
        *,
        latents_NYXCHW: Tensor,
        autoencoder: Any,
        seed: int,
        metrics: MetricsFile,
    ) -> None:
        super().__init__(
            denoiser,
            stage=config.name,
            seed=seed,
            num_steps=config.num_steps,
            warmup_steps=config.warmup_steps,
            decay_fraction=config.decay_fraction,
            ema_decay=config.ema_decay,
            clip_norm=config.clip_norm,
            log_every=config.log_every,
            metrics=metrics,
        )
        self.config, self.monitor = config, monitor
        # Kept out of the module's own attributes, which would put them in every checkpoint.
        self._frozen = {"latents": latents_NYXCHW, "autoencoder": autoencoder}
        if config.trainable == "temporal":
            self.networks.requires_grad_(False)
            for parameter in denoiser.temporal_parameters():
                parameter.requires_grad_(True)
        elif config.trainable != "all":
            raise ValueError(f"stage {config.name}: trainable is 'all' or 'temporal', not {config.trainable!r}.")
        if config.compile:
            denoiser.transformer.compile()

    def optimizer(self) -> torch.optim.Optimizer:
        """The configured optimizer over the trainable parameters."""
        from fsframework.train.muon import MuonWithAdamW

        denoiser: Any = self.networks
        trained = [p for p in denoiser.parameters() if p.requires_grad]
        if self.config.optimizer == "adamw":
            return torch.optim.AdamW(trained, lr=self.config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        if self.config.optimizer != "muon":
            raise ValueError(f"unknown optimizer {self.config.optimizer!r}; use 'muon' or 'adamw'.")
        matrix_ids = {id(p) for p in denoiser.hidden_matrices()}
        return MuonWithAdamW(
            [p for p in trained if id(p) in matrix_ids],
            [p for p in trained if id(p) not in matrix_ids],
            lr=self.config.learning_rate,
            adamw_lr=self.config.adamw_learning_rate,
        )

    def batch(self, step: int) -> tuple[Tensor, list[str]]:
        """Clean latents [B, C, F, H, W] and prompts of one step; some prompts are dropped to ""."""
        rng = self.numpy_generator(step)
        num_clips, num_frames = self.config.batch_clips, self.config.num_frames
        if self.config.image_share > 0 and rng.random() < self.config.image_share:
            num_clips, num_frames = self.config.image_clips, self.config.image_frames
        plan = bouncing_digits.sample_plan(rng, num_clips, num_frames=num_frames)
        dropped_B = rng.random(len(plan.digits_N)) < self.config.caption_dropout
        captions = plan.captions()
        if self.config.partial_captions > 0:
            captions = partial_captions(captions, rng, self.config.partial_captions)
        prompts = ["" if dropped else text for dropped, text in zip(dropped_B, captions)]
        denoiser: Any = self.networks
        return denoiser.clip_latents(look_up(plan, self._frozen["latents"])), prompts

    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor, list[str], dict[str, Any]]:
        """One step's clean latents and noise [B, C, F, H, W], timesteps [B], prompts and conditions: this process's share."""
        denoiser: Any = self.networks
        clean_BCFHW, prompts = self.batch(step)
        generator = self.generator(step)
        uniform_B = torch.rand(len(prompts), generator=generator)
        timesteps_B = denoiser.draw_timesteps(uniform_B, self.config.timestep_power)
        noise_BCFHW = torch.randn(clean_BCFHW.shape, generator=generator)
        conditions = denoiser.draw_conditions(generator, clean_BCFHW.shape[2])
        own = self.share(len(prompts))
        return clean_BCFHW[own], noise_BCFHW[own], timesteps_B[own], prompts[own], conditions

    def loss(self, step: int) -> Tensor:
        """Mean squared error of the prediction."""
        denoiser: Any = self.networks
        clean_BCFHW, noise_BCFHW, timesteps_B, prompts, conditions = self.draw(step)
        noisy_BCFHW, target_BCFHW = denoiser.noisy_and_target(clean_BCFHW, noise_BCFHW, timesteps_B)
        return nn.functional.mse_loss(denoiser(noisy_BCFHW, timesteps_B, prompts, **conditions), target_BCFHW)

    @torch.no_grad()
    def evaluation_losses(self, num_clips: int = 24) -> dict[str, float]:
        """Loss of the averaged weights at fixed timesteps on fixed clips of evaluation digits, captions given."""
        average: Any = self.average
        if "evaluation" not in self._frozen:
            count = num_clips if self.config.num_frames > 1 else 10 * num_clips
            videos, prompts = bouncing_digits.sample_clips(1, count, "eval", num_frames=self.config.num_frames)
            latents = self._frozen["autoencoder"].encode(to_model_range(videos).flatten(0, 1)).latent_dist.mode()
            latents = average.clip_latents(latents.unflatten(0, videos.shape[:2]).transpose(1, 2))
            self._frozen["evaluation"] = (latents, prompts)
        clean_BCFHW, prompts = self._frozen["evaluation"]
        noise_BCFHW = torch.randn(clean_BCFHW.shape, generator=torch.Generator().manual_seed(1))
        losses = {}
        for timestep in self.evaluation_timesteps:
            timesteps_B = torch.full((len(prompts),), timestep)
            noisy, target = average.noisy_and_target(clean_BCFHW, noise_BCFHW, timesteps_B)
            losses[f"loss_at_{timestep}"] = float(nn.functional.mse_loss(average(noisy, timesteps_B, prompts), target))
        return losses

    def adherence(self) -> dict[str, float]:
        """Share of generated clips that show the digit and the motion of their captions.

        Motion is told for whole clips only, not in a stage of images.
        """
        from fsframework.metrics.adherence import PromptAdherence

        pairs = bouncing_digits.all_pairs()
        chosen = [pairs[(7 * i) % len(pairs)] for i in range(self.monitor.num_clips)]
        prompts = [bouncing_digits.caption(*pair) for pair in chosen]
        average: Any = self.average
        videos = average.generate(
            self._frozen["autoencoder"],
            prompts,
            [100_000 + self.global_step + i for i in range(len(prompts))],
            num_steps=self.monitor.num_steps,
            guidance_scale=self.monitor.guidance_scale,
            num_frames=self.config.num_frames,
        )
        judge = PromptAdherence()
        results = [judge.score(video, prompt) for video, prompt in zip(videos, prompts)]
        row = {"digit_adherence": float(np.mean([r.digit for r in results]))}
        if self.config.num_frames >= bouncing_digits.NUM_FRAMES:
            row["motion_adherence"] = float(np.mean([r.motion for r in results]))
            row["adherence"] = float(np.mean([r.both for r in results]))
        per_frame = [judge.digit_scores(v).argmax(1) == pair[0] for v, pair in zip(videos, chosen)]
        row["frame_digit_accuracy"] = float(np.mean(per_frame))
        return row

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Also measure held-out loss and adherence now and then."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        step = self.global_step
        if not self.trainer.is_global_zero:
            return
        if step % self.config.evaluate_every == 0:
            self.record(self.evaluation_losses())
        if step % self.config.sample_every == 0 or step == self.num_steps:
            self.record(self.adherence())
