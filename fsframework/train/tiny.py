"""Train one of the bundled tiny text-to-video models: `python -m fsframework.train.tiny CONFIG.yaml [key=value ...]`.

The stages run in order, autoencoder -> latents -> denoiser stages -> export -> evaluation, in `output_dir`. Every
finished stage leaves a file and is skipped when the command is given again; an unfinished one continues from its
last checkpoint, bit for bit.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from fsframework.train.config import TinyConfig, load_config
from fsframework.train.families import FAMILIES
from fsframework.train.stage import MetricsFile

BUNDLED = Path(__file__).resolve().parents[1] / "models"
"""Where the shipped pipelines lie."""


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
    """The trained autoencoder of frames with normalised latents; trained here unless `vae/` is there already."""
    import numpy as np
    import torch
    from diffusers import AutoencoderKL

    from fsframework.train import autoencoder as ae

    settings = config.autoencoder
    folder = directory / "vae"
    if folder.exists():
        return AutoencoderKL.from_pretrained(folder)
    if settings.source:
        trained: Any = AutoencoderKL.from_pretrained(BUNDLED / settings.source / "vae")
    else:
        torch.manual_seed(config.seed)
        trained = _fit_autoencoder(ae.build_autoencoder(settings), config, directory, decoder_only=False)
        ae.normalize_latents(trained, ae.random_frames(np.random.default_rng(config.seed), 2000))
    if settings.decoder_steps:
        from fsframework.train.cogvideox_autoencoder import fold_quantization

        fold_quantization(trained)
        trained = _fit_autoencoder(trained, config, directory, decoder_only=True)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        psnr_db = ae.reconstruction_psnr(trained)
        MetricsFile(directory / "metrics.jsonl").append(
            "decoder" if settings.decoder_steps else "autoencoder",
            settings.decoder_steps or settings.num_steps,
            psnr_db=psnr_db,
        )
        print(f"autoencoder: {psnr_db:.2f} dB on evaluation digits", flush=True)
        trained.save_pretrained(folder)
    return trained


def _fit_autoencoder(autoencoder: Any, config: TinyConfig, directory: Path, *, decoder_only: bool) -> Any:
    from fsframework.train.autoencoder import AutoencoderStage

    module = AutoencoderStage(
        autoencoder,
        config.autoencoder,
        seed=config.seed,
        metrics=MetricsFile(directory / "metrics.jsonl"),
        decoder_only=decoder_only,
    )
    fit(module, config, directory)
    return module.average


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

    torch.manual_seed(config.seed)
    family = FAMILIES[config.family]
    factor = 2 ** (len(config.autoencoder.block_channels) - 1)
    return family(
        family.config_class(**config.model),
        config.text,
        latent_channels=config.autoencoder.latent_channels,
        latent_size=CANVAS_PIXELS // factor,
    )


def train_denoiser(config: TinyConfig, directory: Path, autoencoder: Any, latents: Any) -> Any:
    """Run the denoiser's stages; returns the denoiser with the averaged weights of the last."""
    import torch

    from fsframework.train.diffusion import DenoiserStage

    denoiser = build_denoiser(config)
    denoiser.prepare(latents)
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
        FAMILIES[config.family].sampling,
        seeds_per_caption=config.evaluation.seeds_per_caption,
        first_seed=config.evaluation.first_seed,
        num_steps=config.evaluation.num_steps,
        guidance_scale=config.evaluation.guidance_scale,
        num_processes=config.num_processes,
    )
    ex.save_samples(
        folder, FAMILIES[config.family].sampling, config.evaluation.num_steps, config.evaluation.guidance_scale
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
