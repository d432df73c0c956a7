"""FLOPs counted while a forward runs, for models whose shapes depend on the values they are given."""

from __future__ import annotations

from typing import Any

from torch import nn

from fsframework.core.site import Site
from fsframework.core.visit import ForwardRecord
from fsframework.core.wrap import Slot


def flop_counter() -> Any:
    """torch's `FlopCounterMode`, which knows the GPU's attention kernels, with the CPU's, that would else cost nothing."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={on_cpu: attention})


class CountingRecord(ForwardRecord):
    """A forward that also counts its FLOPs: enter `counter` around it. The first one of each branch in a video is one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.counter = flop_counter()
        self.flops: dict[Site, float] = {}
        """What went by while each block or sub-module ran."""

    @property
    def total_flops(self) -> float:
        """FLOPs so far, of the whole model."""
        return float(self.counter.get_total_flops())

    def visit(self, slot: Slot, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As `ForwardRecord.visit`."""
        before = self.total_flops
        output = super().visit(slot, module, args, kwargs)
        if (key := self._slot_keys.get(slot)) is not None:
            self.flops[key.site] = self.total_flops - before
        return output
