"""The run configuration: schema, and strict loading with clear errors. Imports no torch."""

from fsframework.config.load import load_config as load_config
from fsframework.config.schema import RunConfig as RunConfig
