"""`Checkpoint`, a named set of weights and its usual sampling, and `LoadedModel`, one in memory."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fsframework.core.registry import nearest

if TYPE_CHECKING:
    from fsframework.core.adapter import ModelAdapter
    from fsframework.core.bound import BoundModel


@dataclass(frozen=True)
class Checkpoint:
    """A named set of weights of a family, with the sampling it is meant for."""

    source: str
    """A folder (relative to `fsframework/models`) or a Hugging Face repository."""
    num_steps: int = 50
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: int = 8
    dtype: str = "float32"
    """The dtype the weights are usually run in; on a CPU always float32."""
    revision: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments its pipeline is called with, such as a negative prompt without which there is no guidance."""
    num_branches: int = 2
    """Guidance branches of a step at the usual settings; 1 where guidance is distilled into the model."""
    structure: Mapping[str, Any] | None = None
    """Constructor arguments of the published transformer where they differ from its class's defaults, so that it can be
    built without its weights and counted; None where that is not stated."""

    @property
    def pixels(self) -> tuple[int, int, int]:
        """(frames, height, width) of a video at the usual settings; an image is one frame."""
        if self.height is None or self.width is None:
            raise ValueError(f"{self.source}: the checkpoint states no height and width")
        return self.num_frames or 1, self.height, self.width


@dataclass
class LoadedModel:
    """A checkpoint in memory: its pipeline, its adapter, and the sampling defaults that belong to it."""

    name: str
    adapter: ModelAdapter
    pipe: Any
    checkpoint: Checkpoint
    path: Path | str

    @property
    def transformer(self) -> nn.Module:
        """The denoiser."""
        module: nn.Module = getattr(self.pipe, self.adapter.transformer_name)
        return module

    def bind(self) -> BoundModel:
        """The blocks of the denoiser, checked and numbered."""
        return self.adapter.bind(self.transformer)

    def generate(
        self,
        prompt: str,
        seed: int,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        **extra: Any,
    ) -> Tensor:
        """One video for one prompt: float32 [T, H, W, 3] in [0, 1], on the CPU. Defaults are the checkpoint's.

        The noise comes from a CPU generator seeded with `seed`, so it is the same on every device.
        """
        frames = self._call(prompt, seed, "pt", num_steps, guidance_scale, height, width, num_frames, **extra)
        if frames.ndim == 5:
            frames = frames[0]
        return frames.permute(0, 2, 3, 1).to("cpu", torch.float32).clamp(0, 1)

    def generate_latents(self, prompt: str, seed: int, **sampling: Any) -> Tensor:
        """What `generate` would decode, in the pipeline's own layout (Latte [1, C, T, H, W], CogVideoX [1, T, C, H, W]):
        float32, on the CPU. `sampling` as in `generate`. Nothing is decoded."""
        latents = self._call(prompt, seed, "latent", **sampling)
        if not isinstance(latents, Tensor):
            raise ValueError(
                f"{type(self.pipe).__name__} gives no latents: with output_type='latent' it returned a "
                f"{type(latents).__name__}"
            )
        return latents.to("cpu", torch.float32)

    def _call(
        self,
        prompt: str,
        seed: int,
        output_type: str,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        **extra: Any,
    ) -> Tensor:
        """What the pipeline returns for one prompt, called with the checkpoint's defaults where nothing else is said."""
        own = self.checkpoint
        usual: dict[str, Any] = {
            "num_inference_steps": own.num_steps, "guidance_scale": own.guidance_scale, "height": own.height,
            "width": own.width, "num_frames": own.num_frames, **own.arguments,
        }  # fmt: skip
        asked: dict[str, Any] = {
            "num_inference_steps": num_steps, "guidance_scale": guidance_scale, "height": height, "width": width,
            "num_frames": num_frames, **extra,
        }  # fmt: skip
        asked = {name: value for name, value in asked.items() if value is not None}
        accepted = inspect.signature(type(self.pipe).__call__).parameters
        if "prompt" not in accepted:
            raise ValueError(
                f"{type(self.pipe).__name__} takes no text prompt, but {list(accepted)[1]!r}; call the pipeline itself "
                f"inside fsf.reuse(model.pipe, policy)"
            )
        names = self.adapter.pipeline_arguments
        arguments = {names.get(k, k): v for k, v in {**usual, **asked}.items() if v is not None}
        for name in asked:
            if (own_name := names.get(name, name)) not in accepted:
                raise ValueError(
                    f"{type(self.pipe).__name__} takes no {own_name!r}. {nearest(own_name, list(accepted))}"
                )
        arguments = {"prompt": prompt, **{name: value for name, value in arguments.items() if name in accepted}}
        needed = [n for n, p in accepted.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        missing = [name for name in needed[1:] if name not in arguments]
        if missing:
            raise ValueError(f"{type(self.pipe).__name__} also needs {', '.join(missing)}: give them to generate(...)")
        generator = torch.Generator("cpu").manual_seed(seed)
        result = self.pipe(generator=generator, output_type=output_type, **arguments)
        frames: Tensor = result.frames if hasattr(result, "frames") else result.images
        return frames
