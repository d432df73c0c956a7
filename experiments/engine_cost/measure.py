"""The benchmark's `engine` section and its `wide` section alone, with more rounds: see README.md."""

from __future__ import annotations

import argparse

from fsframework.run.bench import bench
from fsframework.run.bench_config import load_bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds per figure (default 9)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as of `fsf bench`")
    options = parser.parse_args()
    keys = ["sections=[engine,wide]", f"rounds={options.rounds}", "out=runs/engine_cost"]
    bench(load_bench(None, [*keys, *options.overrides]))


if __name__ == "__main__":
    main()
