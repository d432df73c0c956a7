"""What a run was made with: the model's files, the code's revision, versions, machine, command."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from fsframework.run.artifacts import RunDirectory, to_json, write_text

_PACKAGES = (
    "torch diffusers transformers accelerate safetensors lightning omegaconf wandb numpy pandas pyarrow av scikit-learn"
)


def model_fingerprint(source: Path | str) -> str:
    """Changes when the weights do. For a folder: names and contents of its files; of a file over 64 MB size and ends."""
    if not isinstance(source, Path):
        return str(source)
    total = hashlib.sha256()
    for path in sorted(p for p in source.rglob("*") if p.is_file() and p.suffix in (".json", ".safetensors", ".bin")):
        if path.relative_to(source).parts[0] == "training":  # a record of how it was trained; not part of the model
            continue
        size = path.stat().st_size
        total.update(f"{path.relative_to(source)} {size}".encode())
        with path.open("rb") as file:
            if size <= 64 << 20:
                total.update(file.read())
            else:
                total.update(file.read(1 << 20))
                file.seek(-(1 << 20), os.SEEK_END)
                total.update(file.read())
    return total.hexdigest()[:16]


def environment(device: str, git_folder: Path) -> dict[str, Any]:
    """What a run was made with: code, versions, machine and its load, command, time (UTC)."""
    import torch

    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "git": git_state(git_folder),
        "versions": {"python": platform.python_version(), "fsframework": _version("fsframework")}
        | {name: _version(name) for name in _PACKAGES.split()},
        "platform": platform.platform(),
        "device": device,
        "gpu": gpu,
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load_average": round(os.getloadavg()[0], 2),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """{"revision", "dirty"} of the checkout that the package in `folder` belongs to; None if it was installed."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
        done.check_returncode()
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an environment may lie inside somebody else's checkout
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def record_environment(directory: RunDirectory, now: Mapping[str, Any]) -> None:
    """Write environment.json; when a run is resumed, keep the first and list the later ones under `resumed`."""
    content = dict(now)
    if directory.environment.is_file():
        content = json.loads(directory.environment.read_text())
        content.setdefault("resumed", []).append({"git": now["git"], "command": now["command"], "time": now["time"]})
    write_text(directory.environment, to_json(content, indent=2) + "\n")


def code_changed(directory: RunDirectory, now: Mapping[str, Any] | None) -> str | None:
    """A sentence if finished videos were made at another git revision than `now` (of `git_state`); else None.

    The run's hash covers the policy's own code, not the engine's or the model's.
    """
    if now is None or not directory.environment.is_file():
        return None
    before = json.loads(directory.environment.read_text())["git"]
    if not before or before["revision"] == now["revision"]:
        return None
    return (
        f"finished videos of {directory.path} were made at revision {before['revision'][:8]}, now it is "
        f"{now['revision'][:8]}; they are kept. Delete the directory to make them anew."
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
