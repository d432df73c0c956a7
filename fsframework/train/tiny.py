"""Train one of the bundled tiny text-to-video models: `python -m fsframework.train.tiny CONFIG.yaml [key=value ...]`.

The stages run in order, autoencoder -> latents -> denoiser stages -> export -> evaluation, in `output_dir`. Every
finished stage leaves a file and is skipped when the command is given again; an unfinished one continues from its
last checkpoint, bit for bit.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fsframework.train.autoencoder import AutoencoderConfig
from fsframework.train.diffusion import DenoiserStageConfig, MonitorConfig
from fsframework.train.latte import LatteConfig
from fsframework.train.text import TextConfig


@dataclass
class EvaluationConfig:
    """How the exported pipeline is judged: all 20 captions, each with several seeds that training never samples."""

    seeds_per_caption: int = 4
    first_seed: int = 7_000_000
    num_steps: int = 50
    guidance_scale: float = 4.0


@dataclass
class TinyConfig:
    """A whole training run."""

    name: str = "tiny-latte"
    output_dir: str = "runs/train/tiny-latte"
    seed: int = 0
    num_processes: int = 1
    """Processes that share every batch (gloo on CPU). On a busy machine two processes of one thread beat one process
    of two: threads wait for each other in every operation, processes once a step."""
    num_threads: int = 2
    """CPU threads of each process."""
    checkpoint_minutes: float = 3.0
    wandb: bool = True
    """Also log to W&B, offline; `metrics.jsonl` in the output directory is the truth."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    latte: LatteConfig = field(default_factory=LatteConfig)
    stages: list[DenoiserStageConfig] = field(default_factory=list)
    """Denoiser stages in order; each starts from the averaged weights of the one before."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    export_dir: str = ""
    """Folder for the pipeline, its training record and its evaluation; default: `pipeline` in the output directory."""
    export_only: bool = False
    """Train nothing; export and evaluate the newest weights, also those of an unfinished stage."""


def load_config(path: str, overrides: list[str]) -> Any:
    """Defaults <- YAML file <- `key=value` overrides; unknown keys and wrong types are errors that say where."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(TinyConfig)
    try:
        for where, source in ((path, OmegaConf.load(path)), ("command line", OmegaConf.from_dotlist(overrides))):
            try:
                merged = OmegaConf.merge(merged, source)
            except OmegaConfBaseException as error:
                reason = str(error).strip().splitlines()[0]
                keys = ", ".join(field.name for field in dataclasses.fields(TinyConfig))
                raise ValueError(f"{where}: {reason}. A training config has the keys {keys}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from None
    return OmegaConf.to_object(merged)


def fit(module: Any, config: TinyConfig, directory: Path) -> Any:
    """Run or continue one stage to its last step; returns the trainer."""
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
        devices=config.num_processes,
        strategy="ddp_find_unused_parameters_true" if config.num_processes > 1 else "auto",
        max_steps=module.num_steps,
        max_epochs=-1,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SaveLast(last, config.checkpoint_minutes)],
    )
    trainer.fit(module, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    if config.wandb and trainer.is_global_zero:
        import wandb

        wandb.finish()
    return trainer


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
    trainer = fit(module, config, directory)
    trained: Any = module.average
    ae.normalize_latents(trained, ae.random_frames(np.random.default_rng(config.seed), 2000))
    if trainer.is_global_zero:
        psnr_db = ae.reconstruction_psnr(trained)
        metrics.append("autoencoder", config.autoencoder.num_steps, psnr_db=psnr_db)
        print(f"autoencoder: {psnr_db:.2f} dB on evaluation digits", flush=True)
        trained.save_pretrained(folder)
    trainer.strategy.barrier()
    return trained


def encode_latents(autoencoder: Any, directory: Path) -> Any:
    """The latent table of all training frames, [N, Y, X, C, H, W] float16; encoded once."""
    import torch

    from fsframework.train.autoencoder import encode_grid

    path = directory / "latents.pt"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")  # processes that share a run may all come here
        torch.save(encode_grid(autoencoder), temporary)
        os.replace(temporary, path)
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
            trainer = fit(module, config, directory)
            if trainer.is_global_zero:
                torch.save(module.average.state_dict(), finished.with_suffix(".tmp"))
                os.replace(finished.with_suffix(".tmp"), finished)
            trainer.strategy.barrier()
        denoiser = build_denoiser(config)
        denoiser.load_state_dict(torch.load(finished))
    return denoiser


def newest_denoiser(config: TinyConfig, directory: Path) -> Any:
    """The denoiser with the averaged weights of the last stage that has any, finished or not."""
    import torch

    denoiser = build_denoiser(config)
    for stage in reversed(config.stages):
        finished, unfinished = directory / f"{stage.name}.pt", directory / f"{stage.name}.ckpt"
        if finished.exists():
            denoiser.load_state_dict(torch.load(finished))
            return denoiser
        if unfinished.exists():
            checkpoint = torch.load(unfinished, weights_only=False)
            prefix = "average."
            weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
            denoiser.load_state_dict(weights)
            print(f"weights of the unfinished stage {stage.name} at step {checkpoint['global_step']}", flush=True)
            return denoiser
    raise ValueError(
        f"export_only found no weights of the stages {[s.name for s in config.stages]} in {directory}. "
        "Train first, or set output_dir to where the run is."
    )


def export(config: TinyConfig, directory: Path, denoiser: Any, autoencoder: Any) -> None:
    """Write the pipeline folder, evaluate it as a user would load it, and put the record beside it."""
    from fsframework.train import export as ex

    folder = Path(config.export_dir) if config.export_dir else directory / "pipeline"
    ex.export_pipeline(denoiser, autoencoder, folder)
    evaluation = ex.evaluate_folder(
        folder,
        seeds_per_caption=config.evaluation.seeds_per_caption,
        first_seed=config.evaluation.first_seed,
        num_steps=config.evaluation.num_steps,
        guidance_scale=config.evaluation.guidance_scale,
        num_processes=config.num_processes,
    )
    ex.write_training_record(config, directory / "metrics.jsonl", evaluation, folder)
    for name in ("all", "trained", "held_out"):
        part = evaluation[name]
        words = ", ".join(f"{k} {part[k]['share']:.3f}" for k in ("digit", "motion", "both"))
        print(f"{folder}: {name} captions, {part['num_clips']} clips: {words}", flush=True)


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
    if config.export_only:
        denoiser = newest_denoiser(config, directory)
    else:
        denoiser = train_denoiser(config, directory, autoencoder, encode_latents(autoencoder, directory))
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        export(config, directory, denoiser, autoencoder)


if __name__ == "__main__":
    main()
