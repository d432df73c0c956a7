"""Config schema and loading; OmegaConf, no torch."""
