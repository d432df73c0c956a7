"""What is done to a prompt before the text encoder: scores are appended, then it is cleaned as in training."""

from __future__ import annotations

from diffusers.utils import is_bs4_available, is_ftfy_available


def add_scores(
    prompt: str,
    aesthetic_score: float | None = None,
    motion_score: float | None = None,
    camera_motion: str | None = None,
) -> str:
    """The prompt with what the model was told about its training videos; what the prompt already says is left.

    Args:
        prompt: the text.
        aesthetic_score: how good it looks, about 4 to 7; higher is better.
        motion_score: how much moves, about 0 to 20 and more; higher is more.
        camera_motion: in words, such as `pan right`.
    """
    scores = {
        "aesthetic score": None if aesthetic_score is None else f"{aesthetic_score:.1f}",
        "motion score": None if motion_score is None else f"{motion_score:.1f}",
        "camera motion": camera_motion,
    }
    for name, value in scores.items():
        if value is not None and f"{name}:" not in prompt:
            prompt = f"{prompt} {name}: {value}."
    return prompt


def cleaning_lacks() -> list[str]:
    """Packages that `clean` needs and that are not installed."""
    return [
        name for name, there in (("ftfy", is_ftfy_available()), ("beautifulsoup4", is_bs4_available())) if not there
    ]


def clean(prompt: str) -> str:
    """The prompt as the captions of the training set were cleaned (DeepFloyd's rules): once, then once more.

    Lower case; without addresses, HTML, ideograms, file names, most special characters and advertising.

    Raises:
        ImportError: ftfy or beautifulsoup4 is not installed.
    """
    if lacking := cleaning_lacks():
        raise ImportError(f"cleaning captions needs {' and '.join(lacking)}: pip install 'fsframework[opensora]'")
    from diffusers import PixArtAlphaPipeline

    for _ in range(2):
        prompt = PixArtAlphaPipeline._clean_caption(PixArtAlphaPipeline, prompt)
    return prompt


def plain(prompt: str) -> str:
    """What is left of cleaning without its packages: lower case, no space around."""
    return prompt.lower().strip()
