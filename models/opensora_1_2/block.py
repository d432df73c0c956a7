"""One block of STDiT3: self-attention within frames or along time, attention to the text, MLP.

Letters in names: B batch, T frames, S patches of a frame, N = T S tokens, L text tokens, C width, D head width.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from fsframework.models.opensora_1_2.embeddings import rotate

Axis = Literal["spatial", "temporal"]


class HeadNorm(nn.Module):
    """RMS norm over a head, in float32; the weight comes after the cast back."""

    def __init__(self, head_dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to the same."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


class SelfAttention(nn.Module):
    """Attention among the tokens of each row: the patches of a frame, or the frames of a patch."""

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_dim = hidden_size // num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = HeadNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = HeadNorm(head_dim) if qk_norm else nn.Identity()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_BNC: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """[B, N, C] to the same; `rotary` has tables of [N, D] as `Rotary` gives them, or None for no turning."""
        qkv = rearrange(self.qkv(x_BNC), "B N (three heads D) -> three B heads N D", three=3, heads=self.num_heads)
        q, k = self.q_norm(qkv[0]), self.k_norm(qkv[1])
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        attended = F.scaled_dot_product_attention(q, k, qkv[2])
        joined: Tensor = self.proj(rearrange(attended, "B heads N D -> B N (heads D)"))
        return joined


class CrossAttention(nn.Module):
    """Attention of all tokens to their own sample's text."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(hidden_size, hidden_size)
        self.kv_linear = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_BNC: Tensor, y_BLC: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """[B, N, C] to the same; where `mask_BL` is False a text token is not seen. None: all are."""
        q = rearrange(self.q_linear(x_BNC), "B N (heads D) -> B heads N D", heads=self.num_heads)
        kv = rearrange(self.kv_linear(y_BLC), "B L (two heads D) -> two B heads L D", two=2, heads=self.num_heads)
        seen = None if mask_BL is None else mask_BL[:, None, None]
        attended = F.scaled_dot_product_attention(q, kv[0], kv[1], attn_mask=seen)
        projected: Tensor = self.proj(rearrange(attended, "B heads N D -> B N (heads D)"))
        return projected

    def weights(self, x_BNC: Tensor, y_BLC: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """[B, N, L] float32: what share of each token's attention each text token gets, mean over the heads.

        One head after the other, so that at most one head's weights are there beside the sum.
        """
        q = rearrange(self.q_linear(x_BNC), "B N (heads D) -> heads B N D", heads=self.num_heads)
        kv = rearrange(self.kv_linear(y_BLC), "B L (two heads D) -> two heads B D L", two=2, heads=self.num_heads)
        total = torch.zeros(*x_BNC.shape[:2], y_BLC.shape[1], device=x_BNC.device)
        for q_BND, k_BDL in zip(q, kv[0]):
            logits = (q_BND @ k_BDL).float() * q.shape[-1] ** -0.5
            if mask_BL is not None:
                logits = logits.masked_fill(~mask_BL[:, None], -torch.inf)
            total += logits.softmax(dim=-1)
        return total / self.num_heads


class Mlp(nn.Module):
    """Two linear layers around a tanh GELU."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(hidden_size, inner_size), nn.Linear(inner_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to the same."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class STDiT3Block(nn.Module):
    """A spatial or a temporal block; both attend to the text, and both change the tokens by three additions.

    Args:
        hidden_size: C.
        num_heads: of all attentions.
        mlp_ratio: inner width of the MLP over C.
        axis: what self-attention runs along.
        qk_norm: norm queries and keys of self-attention.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, axis: Axis, qk_norm: bool) -> None:
        super().__init__()
        self.axis = axis
        self.scale_shift_table = nn.Parameter(torch.randn(6, hidden_size) / hidden_size**0.5)
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.attn = SelfAttention(hidden_size, num_heads, qk_norm)
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio))

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        modulation: Tensor,
        num_frames: int,
        text_mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The tokens after this block.

        Args:
            hidden_states: [B, N, C] with N = T S, frames slowest.
            encoder_hidden_states: [B, L, C].
            modulation: from the timestep, [B, 1, 6, C], or [B, T, 6, C] where frames have timesteps of their own.
            num_frames: T.
            text_mask: [B, L] bool, True where a text token is seen; None: all are.
            rotary: cosine and sine [T, D], for temporal blocks.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.factors(modulation)
        groups = (modulation.shape[1], -1)
        x = hidden_states.unflatten(1, groups)
        normed = (self.norm1(x) * (1 + scale_a) + shift_a).flatten(1, 2)
        attended = self.attn(self._fold(normed, num_frames), rotary=rotary)
        x = x + gate_a * self._unfold(attended, normed).unflatten(1, groups)
        x = x + self.cross_attn(x.flatten(1, 2), encoder_hidden_states, text_mask).unflatten(1, groups)
        changed = self.mlp((self.norm2(x) * (1 + scale_m) + shift_m).flatten(1, 2))
        return (x + gate_m * changed.unflatten(1, groups)).flatten(1, 2)

    def _fold(self, x_BNC: Tensor, num_frames: int) -> Tensor:
        """Whatever attends to nothing else to the batch: [(B T), S, C], or [(B S), T, C]."""
        pattern = "(B T) S C" if self.axis == "spatial" else "(B S) T C"
        return rearrange(x_BNC, f"B (T S) C -> {pattern}", T=num_frames)

    def _unfold(self, x: Tensor, like: Tensor) -> Tensor:
        pattern = "(B T) S C" if self.axis == "spatial" else "(B S) T C"
        axes = dict(B=like.shape[0], S=x.shape[1]) if self.axis == "spatial" else dict(B=like.shape[0], T=x.shape[1])
        return rearrange(x, f"{pattern} -> B (T S) C", **axes)

    def attention_gate(self, modulation: Tensor, num_frames: int, num_tokens: int) -> Tensor:
        """The factor of the self-attention's output as it is folded: broadcasts to [(B T), S, C] or [(B S), T, C]."""
        gate = self.factors(modulation)[2].squeeze(2).expand(-1, num_frames, -1)
        if self.axis == "spatial":
            return rearrange(gate, "B T C -> (B T) 1 C")
        return repeat(gate, "B T C -> (B S) T C", S=num_tokens // num_frames)

    def mlp_gate(self, modulation: Tensor, num_tokens: int) -> Tensor:
        """The factor of the MLP's output: broadcasts to [B, N, C]."""
        gate = self.factors(modulation)[5].squeeze(2)
        return gate if gate.shape[1] == 1 else repeat(gate, "B T C -> B (T S) C", S=num_tokens // gate.shape[1])

    def factors(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the MLP: each [B, 1, 1, C], or [B, T, 1, C] per frame."""
        return (self.scale_shift_table + modulation)[:, :, :, None].unbind(2)
