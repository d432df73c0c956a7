"""Muon for hidden matrices, AdamW for everything else, as one optimizer.

Muon (K. Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by its nearest
semi-orthogonal matrix. torch.optim.Muon does that one matrix at a time in bfloat16; on a CPU without bfloat16 units
that dominates the step of a small model, so matrices of one shape are stacked here and iterated in float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_QUINTIC = (3.4445, -4.775, 2.0315)
"""Coefficients of the Newton-Schulz polynomial from the Muon post, tuned for slope at zero."""


def orthogonalize(matrices_KMN: Tensor, num_iterations: int = 5) -> Tensor:
    """Semi-orthogonal matrices near each of `matrices_KMN` [K, M, N]: singular values within about 0.7 to 1.2."""
    transpose = matrices_KMN.shape[-2] > matrices_KMN.shape[-1]
    x = matrices_KMN.mT if transpose else matrices_KMN
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if transpose else x


def _orthogonalize_together(matrices_KMN: Tensor) -> Tensor:
    """`orthogonalize`, the matrices dealt out among the processes of a distributed run."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return orthogonalize(matrices_KMN)
    own = slice(dist.get_rank(), None, dist.get_world_size())
    result = torch.zeros_like(matrices_KMN)
    result[own] = orthogonalize(matrices_KMN[own])
    dist.all_reduce(result)
    return result


class MuonWithAdamW(torch.optim.Optimizer):
    """`matrices` are stepped by Muon, `others` by AdamW with learning rate `adamw_lr`.

    The update of a matrix is scaled by 0.2 * sqrt(max(rows, columns)), so that its size per element matches AdamW's
    and the two learning rates are of one kind (J. Liu et al., arXiv:2502.16982).
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        lr: float,
        adamw_lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        groups = [
            {"params": list(matrices), "lr": lr, "muon": True, "momentum": momentum, "weight_decay": weight_decay},
            {"params": list(others), "lr": adamw_lr, "muon": False, "betas": betas, "eps": eps, "weight_decay": 0.0},
        ]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["muon"] else self._adamw)(group, params)
        return loss

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for param in params:
            by_shape[param.shape].append(param)
        for shape, same in by_shape.items():
            updates = []
            for param in same:
                assert param.grad is not None
                buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
                buffer.lerp_(param.grad, 1 - group["momentum"])
                updates.append(param.grad.lerp(buffer, group["momentum"]))
            orthogonal = _orthogonalize_together(torch.stack(updates)).unbind()
            if group["weight_decay"]:
                torch._foreach_mul_(same, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(same, list(orthogonal), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        for param in params:
            grad = param.grad
            assert grad is not None
            state = self.state[param]
            if not state:
                state.update(step=0, mean=torch.zeros_like(param), square=torch.zeros_like(param))
            state["step"] += 1
            state["mean"].lerp_(grad, 1 - beta1)
            state["square"].lerp_(grad.square(), 1 - beta2)
            mean = state["mean"] / (1 - beta1 ** state["step"])
            square = state["square"] / (1 - beta2 ** state["step"])
            param.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-group["lr"])
