"""What a distance costs beside the block it watches."""

import statistics
import time

import pytest
import torch

from fsframework.core.distance import mse, relative_l1
from fsframework.models.opensora_1_2.block import STDiT3Block

FRAMES, PATCHES, WIDTH = 16, 1024, 1152


def cpu_seconds(call, repeats):
    found = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return statistics.median(found)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["spatial", "temporal"])
def test_a_distance_costs_at_most_half_a_percent_of_an_open_sora_block(axis):
    """Width 1152, 16 frames of 1024 patches, float32, one thread, CPU time; both in turns, as other processes may run."""
    torch.manual_seed(0)
    x = torch.randn(1, FRAMES * PATCHES, WIDTH)
    text, modulation = torch.randn(1, 300, WIDTH), torch.randn(1, 1, 6, WIDTH)
    rotary = (torch.ones(FRAMES, WIDTH // 16), torch.zeros(FRAMES, WIDTH // 16)) if axis == "temporal" else None
    block = STDiT3Block(WIDTH, 16, 4.0, axis, qk_norm=True).eval()

    def run():
        return block(x, text, modulation, FRAMES, rotary=rotary)

    with torch.no_grad():
        y = run()
        distances = {
            "mse": lambda: mse(y, x),
            "relative_l1": lambda: relative_l1(y, x),
            "mse, every fourth token": lambda: mse(y, x, stride=4),
        }
        blocks, found = [], {name: [] for name in distances}
        for _ in range(2):
            blocks.append(cpu_seconds(run, 1))
            for name, call in distances.items():
                found[name].append(cpu_seconds(call, 5))
    print(f"\n{axis} block {min(blocks):.2f} s")
    for name, seconds in found.items():
        print(f"  {name}: {1e3 * min(seconds):.1f} ms, {100 * min(seconds) / min(blocks):.2f} %")
        assert min(seconds) <= 0.005 * min(blocks)
