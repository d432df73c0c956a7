"""The model after each stage of its training, as pipelines that training_progress.yaml can run.

    python experiments/paper/export_stages.py experiments/tiny_models/opensora.yaml runs/train/opensora-progress

Needs the finished stages of a training run (`<output_dir>/<stage>.pt`), which `python -m fsframework.train.tiny` leaves.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from fsframework.train.config import load_config
from fsframework.train.export import export_pipeline
from fsframework.train.tiny import build_denoiser, train_autoencoder


def main(config_file: str, out: str, *overrides: str) -> None:
    """Write `<out>/<stage>` for every finished stage.

    Raises:
        ValueError: no stage is finished.
    """
    config = load_config(config_file, list(overrides))
    directory = Path(config.output_dir)
    finished = [stage.name for stage in config.stages if (directory / f"{stage.name}.pt").exists()]
    if not finished:
        raise ValueError(
            f"no finished stage in {directory}: train first (python -m fsframework.train.tiny {config_file}), or set "
            f"output_dir to where the training run is"
        )
    autoencoder = train_autoencoder(config, directory)
    for name in finished:
        denoiser = build_denoiser(config)
        denoiser.load_state_dict(torch.load(directory / f"{name}.pt"))
        export_pipeline(denoiser, autoencoder, Path(out) / name)
        print(Path(out) / name)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit("usage: python experiments/paper/export_stages.py CONFIG.yaml OUT [key=value ...]")
    main(*sys.argv[1:])
