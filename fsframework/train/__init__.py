"""Training of the bundled tiny models, with Lightning."""
