"""Train one of the bundled tiny text-to-video models: `python -m fsframework.train.tiny CONFIG.yaml [key=value ...]`.

The stages run in order, autoencoder -> latents -> denoiser stages -> export -> evaluation, in `output_dir`. Every
finished stage leaves a file and is skipped when the command is given again; an unfinished one continues from its
last checkpoint, bit for bit.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsframework.train.autoencoder import AutoencoderConfig
from fsframework.train.diffusion import DenoiserStageConfig, MonitorConfig
from fsframework.train.latte import LatteConfig
from fsframework.train.text import TextConfig


@dataclass
class TinyConfig:
    """A whole training run."""

    name: str = "tiny-latte"
    output_dir: str = "runs/train/tiny-latte"
    seed: int = 0
    num_threads: int = 2
    """CPU threads of torch."""
    checkpoint_minutes: float = 3.0
    wandb: bool = True
    """Also log to W&B, offline; `metrics.jsonl` in the output directory is the truth."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    latte: LatteConfig = field(default_factory=LatteConfig)
    stages: list[DenoiserStageConfig] = field(default_factory=list)
    """Denoiser stages in order; each starts from the averaged weights of the one before."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)


def load_config(path: str, overrides: list[str]) -> Any:
    """Defaults <- YAML file <- `key=value` overrides; unknown keys are errors."""
    from omegaconf import OmegaConf

    merged = OmegaConf.merge(OmegaConf.structured(TinyConfig), OmegaConf.load(path), OmegaConf.from_dotlist(overrides))
    return OmegaConf.to_object(merged)


def fit(module: Any, config: TinyConfig, directory: Path) -> None:
    """Run or continue one stage to its last step."""
    import warnings

    import lightning
    from lightning.pytorch.loggers import WandbLogger

    from fsframework.train.stage import SaveLast

    last = directory / f"{module.stage}.ckpt"
    logger: Any = False
    if config.wandb:
        logger = WandbLogger(
            name=f"{config.name}-{module.stage}", project="fsframework-tiny", save_dir=directory, offline=True
        )
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=module.num_steps,
        max_epochs=-1,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SaveLast(last, config.checkpoint_minutes)],
    )
    trainer.fit(module, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    if config.wandb:
        import wandb

        wandb.finish()


def train_autoencoder(config: TinyConfig, directory: Path) -> Any:
    """The trained autoencoder with normalised latents; trained here unless `vae/` is there already."""
    import numpy as np
    import torch
    from diffusers import AutoencoderKL

    from fsframework.train import autoencoder as ae
    from fsframework.train.stage import MetricsFile

    folder = directory / "vae"
    if folder.exists():
        return AutoencoderKL.from_pretrained(folder)
    metrics = MetricsFile(directory / "metrics.jsonl")
    torch.manual_seed(config.seed)
    module = ae.AutoencoderStage(
        ae.build_autoencoder(config.autoencoder), config.autoencoder, seed=config.seed, metrics=metrics
    )
    fit(module, config, directory)
    trained: Any = module.average
    ae.normalize_latents(trained, ae.random_frames(np.random.default_rng(config.seed), 2000))
    metrics.append("autoencoder", config.autoencoder.num_steps, psnr_db=ae.reconstruction_psnr(trained))
    print(f"autoencoder: {ae.reconstruction_psnr(trained):.2f} dB on evaluation digits", flush=True)
    trained.save_pretrained(folder)
    return trained


def encode_latents(autoencoder: Any, directory: Path) -> Any:
    """The latent table of all training frames, [N, Y, X, C, H, W] float16; encoded once."""
    import os

    import torch

    from fsframework.train.autoencoder import encode_grid

    path = directory / "latents.pt"
    if not path.exists():
        torch.save(encode_grid(autoencoder), path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
    return torch.load(path)


def build_denoiser(config: TinyConfig) -> Any:
    """A denoiser of the configured family with random weights, the same for the same seed."""
    import torch

    from fsframework.data.bouncing_digits import CANVAS_PIXELS
    from fsframework.train.latte import LatteDenoiser

    torch.manual_seed(config.seed)
    factor = 2 ** (len(config.autoencoder.block_channels) - 1)
    return LatteDenoiser(
        config.latte,
        config.text,
        latent_channels=config.autoencoder.latent_channels,
        latent_size=CANVAS_PIXELS // factor,
    )


def train_denoiser(config: TinyConfig, directory: Path, autoencoder: Any, latents: Any) -> Any:
    """Run the denoiser's stages; returns the denoiser with the averaged weights of the last."""
    import os

    import torch

    from fsframework.train.diffusion import DenoiserStage
    from fsframework.train.stage import MetricsFile

    denoiser = build_denoiser(config)
    for stage in config.stages:
        finished = directory / f"{stage.name}.pt"
        if not finished.exists():
            module = DenoiserStage(
                denoiser,
                stage,
                config.monitor,
                latents_NYXCHW=latents,
                autoencoder=autoencoder,
                seed=config.seed,
                metrics=MetricsFile(directory / "metrics.jsonl"),
            )
            fit(module, config, directory)
            torch.save(module.average.state_dict(), finished.with_suffix(".tmp"))
            os.replace(finished.with_suffix(".tmp"), finished)
        denoiser = build_denoiser(config)
        denoiser.load_state_dict(torch.load(finished))
    return denoiser


def main(argv: list[str] | None = None) -> None:
    """Run every stage that is not finished yet."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        raise SystemExit("usage: python -m fsframework.train.tiny CONFIG.yaml [key=value ...]")
    import torch

    config = load_config(arguments[0], arguments[1:])
    torch.set_num_threads(config.num_threads)
    directory = Path(config.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    autoencoder = train_autoencoder(config, directory)
    latents = encode_latents(autoencoder, directory)
    train_denoiser(config, directory, autoencoder, latents)


if __name__ == "__main__":
    main()
