"""What a pipeline's call is given, checked before anything is computed from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def prompts_of(prompt: str | Sequence[str]) -> list[str]:
    """One or several prompts as a list.

    Raises:
        ValueError: there are none.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("prompt is an empty list, so there is no video to make; give at least one prompt ('' is one)")
    return prompts


def num_prompts_of(prompt: str | Sequence[str] | None, prompt_embeds: Tensor | None, can_encode: bool) -> int:
    """How many prompts a call has, given as text or as states.

    Args:
        prompt: the text.
        prompt_embeds: the states, [B, L, C].
        can_encode: whether the pipeline has a tokenizer and a text encoder.

    Raises:
        ValueError: neither or both are given, there are none, text can not be encoded, or states of another shape.
    """
    if (prompt is None) == (prompt_embeds is None):
        raise ValueError("give either prompt or prompt_embeds")
    if prompt is not None:
        if not can_encode:
            raise ValueError("this pipeline has no text encoder; give prompt_embeds")
        return len(prompts_of(prompt))
    assert prompt_embeds is not None
    if prompt_embeds.ndim != 3 or 0 in prompt_embeds.shape:
        raise ValueError(
            f"prompt_embeds have shape {tuple(prompt_embeds.shape)}; needed is [prompts, tokens, channels], none of them 0"
        )
    return prompt_embeds.shape[0]


def check_generators(generator: torch.Generator | list[torch.Generator] | None, batch: int) -> None:
    """Raise a ValueError for a list that has not one generator for each of the `batch` videos."""
    if isinstance(generator, list) and len(generator) != batch:
        raise ValueError(
            f"generator is a list of {len(generator)}, but this call makes {batch} videos (prompts times "
            f"num_videos_per_prompt); give one generator for each, or a single one that is not in a list"
        )


def check_latents(latents: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raise a ValueError for a first noise of another shape than the call's."""
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; this call's are {shape}")


def check_callback_inputs(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise a ValueError for tensors that a callback can not have."""
    if unknown := set(names) - set(known):
        raise ValueError(f"callbacks can have {known}; asked for {sorted(unknown)}")


def check_callback_embeds(prompt_embeds: Tensor, mask: Tensor | None) -> None:
    """Raise a ValueError for states from a callback that the text mask [B, L], which it can not change, does not fit."""
    if mask is not None and prompt_embeds.shape[:2] != mask.shape:
        raise ValueError(
            f"callback_on_step_end returned prompt_embeds of shape {tuple(prompt_embeds.shape)}, but this batch's prompts "
            f"have unequal lengths, whose mask is for {tuple(mask.shape)} prompts and tokens; keep their number and length"
        )
