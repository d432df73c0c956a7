"""Adapters, one file per DiT family, and the tiny trained checkpoints. Importing this package registers them by name."""

if __name__ == "models":
    raise ImportError("import this package as fsframework.models: the bare name would load every file twice")

from fsframework.models.cogvideox import CogVideoX as CogVideoX
from fsframework.models.latte import Latte as Latte
