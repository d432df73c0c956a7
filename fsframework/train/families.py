"""Every family of tiny models; importing their files registers them."""

from fsframework.train import cogvideox as _cogvideox  # noqa: F401
from fsframework.train import latte as _latte  # noqa: F401
from fsframework.train import opensora as _opensora  # noqa: F401
from fsframework.train.family import FAMILIES as FAMILIES
