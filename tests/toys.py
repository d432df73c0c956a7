"""Models small enough to work out by hand, and the denoising loops that tests drive them with."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from fsframework.core import BlockList, Kind, ModelAdapter, Part, ReuseEngine, ReusePolicy
from fsframework.core.samples import rows_of, stacked

Script = Callable[[int, float], float]
"""(block, timestep) -> the number a scripted block outputs everywhere."""


class ScriptedBlock(nn.Module):
    """Outputs a constant that depends on its number and the timestep only; counts how often it really ran."""

    def __init__(self, number: int, script: Script) -> None:
        super().__init__()
        self.number, self.script, self.num_runs = number, script, 0
        self.attn1, self.ff = nn.Identity(), nn.Identity()

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        self.num_runs += 1
        value = self.script(self.number, float(timestep[0]))
        return torch.full_like(hidden_states, value)


class ScriptedDiT(nn.Module):
    """A stack of scripted blocks; its prediction is the last block's output."""

    def __init__(self, num_blocks: int, script: Script) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([ScriptedBlock(i, script) for i in range(num_blocks)])

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states, timestep)
        return (hidden_states,)


class Gated(nn.Module):
    """x + gate(t) * f(x) for attention over tokens and an MLP; every token's MLP is its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attn1, self.ff = Mix(dim), nn.Sequential(nn.Linear(dim, dim), nn.Tanh())

    def gate(self, timestep: Tensor) -> Tensor:
        return (1 + timestep / 1000).reshape(-1, 1, 1)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        hidden_states = hidden_states + self.gate(timestep) * self.attn1(hidden_states)
        return hidden_states + self.gate(timestep) * self.ff(hidden_states)


class Mix(nn.Module):
    """A stand-in for attention: each token sees the mean over tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.tanh(self.out(hidden_states + hidden_states.mean(dim=1, keepdim=True)))


class SmoothDiT(nn.Module):
    """A real little residual network, [B, N, C] in and out, whose output drifts with the timestep."""

    def __init__(self, num_blocks: int = 4, dim: int = 8, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.transformer_blocks = nn.ModuleList([Gated(dim) for _ in range(num_blocks)])

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states, timestep=timestep)
        return (hidden_states,)


class ToyAdapter(ModelAdapter):
    """For both toy models; not registered, so it stays out of the contract suites over real families."""

    transformer_classes = ("ScriptedDiT", "SmoothDiT")
    blocks = (
        BlockList(
            "transformer_blocks", Kind.JOINT, partial={Part.BLOCK: "video", Part.ATTENTION: "video", Part.MLP: "video"}
        ),
    )
    batched_inputs = ("hidden_states", "timestep")

    def gate(self, part: Any, block: nn.Module, arguments: Any) -> tuple[Tensor]:
        return (block.gate(arguments["timestep"]),)  # type: ignore[operator]


def toy_session(model: nn.Module, policy: ReusePolicy[Any], num_steps: int, **options: Any) -> ReuseEngine:
    """A session on a toy in which the timestep is the step number."""
    return ReuseEngine(ToyAdapter().bind(model), policy, timesteps=list(range(num_steps)), **options)


def run_scripted(
    policy: ReusePolicy[Any], script: Script, num_steps: int, num_blocks: int = 1, **options: Any
) -> tuple[ReuseEngine, ScriptedDiT, list[float]]:
    """Run a scripted model; gives the session, the model and the prediction of each step as a number."""
    model = ScriptedDiT(num_blocks, script)
    out = []
    with torch.no_grad(), toy_session(model, policy, num_steps, **options) as session:
        for step in range(num_steps):
            (prediction,) = model(torch.zeros(1, 4, 2), torch.tensor([float(step)]))
            assert prediction.unique().numel() == 1 or bool(prediction.isnan().all())
            out.append(float(prediction[0, 0, 0]))
    return session, model, out


def run_smooth(model: nn.Module, num_steps: int = 8, batch: int = 1, seed: int = 1, tokens: int = 6) -> list[Tensor]:
    """Call a SmoothDiT over `num_steps` with slowly moving input; the predictions."""
    x = torch.randn(batch, tokens, 8, generator=torch.Generator().manual_seed(seed))
    out = []
    with torch.no_grad():
        for step in range(num_steps):
            out.append(model(x * (1 + 0.1 * step), torch.full((batch,), float(step)))[0])
    return out


# Random tiny transformers of the real diffusers classes.


def tiny_transformer(adapter: ModelAdapter, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """The adapter's `tiny_config` with every weight random (none left at zero), in float32."""
    classes = importlib.import_module(adapter.pipeline_module)
    model: nn.Module = getattr(classes, adapter.transformer_classes[0])(**adapter.tiny_config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            parameter.requires_grad_(False)
    return model


@dataclass
class Loop:
    """A guided DDIM loop over a bare transformer, as the pipelines run it."""

    adapter: ModelAdapter
    model: nn.Module
    scheduler: Any = field(default_factory=lambda: diffusers.DDIMScheduler(clip_sample=False, beta_end=0.012))
    guidance: float = 3.0

    def __call__(
        self,
        num_steps: int = 8,
        seed: int = 0,
        batch: int = 1,
        session: ReuseEngine | None = None,
        sequential: bool = False,
    ) -> Tensor:
        """The final latent of one prompt batch. `sequential`: one forward per guidance branch."""
        inputs = self.adapter.example_inputs(self.model, 2 * batch, torch.Generator().manual_seed(seed))
        name = self.adapter.latent_input
        latent = stacked(inputs.pop(name)[:batch])
        self.scheduler.set_timesteps(num_steps)
        for t in self.scheduler.timesteps:
            if sequential:
                assert session is not None
                parts = []
                for i, branch in enumerate(self.adapter.batch_order):
                    rows = slice(i * batch, (i + 1) * batch)
                    own = {
                        k: rows_of(v, rows, self.adapter.batch_axes.get(k, 0))
                        if k in self.adapter.batched_inputs
                        else v
                        for k, v in inputs.items()
                    }
                    with session.branch(branch):
                        parts.append(self._call(latent, t, own))
                prediction = torch.cat(parts)
            else:
                prediction = self._call(torch.cat([latent, latent]), t, inputs)
            halves = dict(zip(self.adapter.batch_order, prediction.chunk(2)))
            guided = halves["uncond"] + self.guidance * (halves["cond"] - halves["uncond"])
            latent = self.scheduler.step(_like(guided, latent), t, latent).prev_sample
        return latent

    @torch.no_grad()
    def _call(self, latent: Tensor, t: Tensor, inputs: dict[str, Any]) -> Tensor:
        return stacked(self.model(**self.arguments(latent, t, inputs), return_dict=False)[0])

    @cached_property
    def _takes_lists(self) -> bool:
        example = self.adapter.example_inputs(self.model, 1, torch.Generator().manual_seed(0))
        return not isinstance(example[self.adapter.latent_input], Tensor)

    def arguments(self, latent: Tensor | list[Tensor], t: Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the model is called with: the latent as one tensor or as a list of samples, as the family takes it."""
        return {
            self.adapter.latent_input: list(latent) if self._takes_lists else latent,
            self.adapter.timestep_input: t.expand(len(latent)).to(latent[0].dtype),
            **inputs,
        }


def _like(prediction: Tensor, latent: Tensor) -> Tensor:
    """The first channels (a learned variance follows) or first frames and rows, so that the shape is the latent's."""
    for axis, size in enumerate(latent.shape):
        prediction = prediction.narrow(axis, 0, size)
    return prediction


def letters(session: ReuseEngine, sites: Sequence[str] | None = None) -> dict[str, str]:
    """Decisions of each site as a string."""
    names = sites or [site.name for site in session.sites]
    return {name: session.trace.decisions(name) for name in names}
