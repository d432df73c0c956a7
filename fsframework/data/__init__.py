"""Prompts, videos and the bouncing digits."""
