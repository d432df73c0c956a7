"""`write_report`: run directories in, one self-contained HTML page out."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from fsframework.data.video import atomic_path
from fsframework.run import report_cache
from fsframework.run import report_page as page
from fsframework.run.artifacts import make_folder
from fsframework.run.report_curves import LEFT, RIGHT, WIDTH
from fsframework.run.report_data import RunData
from fsframework.run.report_headline import head
from fsframework.run.report_load import Loaded, load_runs
from fsframework.run.report_memory import memory_section
from fsframework.run.report_published import published_section
from fsframework.run.report_reproduce import reproduce_section
from fsframework.run.report_runs import run_payload
from fsframework.run.report_svg import NUM_COLOURS
from fsframework.run.report_table import csv_lines, latex_lines
from fsframework.run.report_videos import Embedded, embed

SECTIONS = {
    "summary": "Summary",
    "published": "Published",
    "pareto": "Quality against compute",
    "videos": "Videos",
    "reuse": "Where it reuses",
    "memory": "Memory",
    "prompts": "Worst and best",
    "reproduce": "Reproduce",
}
"""Anchors and their names in the navigation, in the order of the page."""


def write_report(run_dirs: Sequence[Path], out: Path, title: str = "Feature reuse against full compute") -> Path:
    """Write a comparison of runs to `out`, one HTML file that needs no network, and return its path.

    A pure function of the run directories: the same files give the same bytes. It reads config.yaml, environment.json,
    metrics.json, videos.jsonl, trace.parquet and the videos; whatever of these is missing or damaged is said on the page.
    The file is complete or absent.

    Args:
        run_dirs: the runs, in the order of the rows. The folder of a grid, `<runs_dir>/_ablations/<name>`, stands for its
            finished cells and brings the published numbers that the grid names.
        out: where to write; its folder is made, and that is said.
        title: the page's title.

    Raises:
        ValueError: no run directories, one that does not exist, or an `out` that can not be written.
    """
    if not run_dirs:
        raise ValueError("a report needs at least one run directory, the folders that `fsf run` printed")
    html = build_page(load_runs([Path(folder) for folder in run_dirs]), title)
    try:
        make_folder(out.parent)
        with atomic_path(out) as temporary:
            temporary.write_text(html, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"can not write the report to {out}: {error.strerror or error}. Give another path.") from None
    return out


def build_page(loaded: Loaded, title: str) -> str:
    """The whole page. A content security policy allows its own script alone, and nothing from any network."""
    runs = loaded.runs
    script, style = _template("report.js"), _template("report.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "media-src data:; base-uri 'none'; form-action 'none'"
    )
    videos = embed(runs)
    sections = {key: name for key, name in SECTIONS.items() if key != "published" or loaded.published}
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name in sections.items())
    body = [
        head(runs, title),
        f"<nav><div>{links}</div></nav><main>",
        page.summary(runs, loaded.notes),
        published_section(loaded.published, runs),
        page.pareto_section(runs),
        page.video_section(runs, videos),
        page.reuse_section(runs),
        memory_section(runs),
        page.ranking_section(runs, videos),
        reproduce_section(runs),
        "<footer>Made by fsframework from the run directories named above.</footer></main>",
        '<div id="tip" role="tooltip" hidden></div>',
        f'<script type="application/json" id="report-data">{_json(_payload(runs, videos))}</script>',
        f"<script>{script}</script>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{style}</style></head><body>'
        + "\n".join(body)
        + "</body></html>\n"
    )


def _payload(runs: Sequence[RunData], videos: Embedded) -> dict[str, Any]:
    head, rows, tail = latex_lines(runs)
    return {
        "colours": NUM_COLOURS,
        "csv": csv_lines(runs),
        "latex": {"head": head, "rows": rows, "tail": tail},
        "panel": {"width": WIDTH, "left": LEFT, "right": RIGHT},
        "cachePanel": {"width": report_cache.WIDTH, "left": report_cache.LEFT, "right": report_cache.RIGHT},
        "cache": [report_cache.cache_payload(run) for run in runs],
        "runs": [run_payload(run) for run in runs],
        "words": [f"{run.mark} {run.cell} {run.label} {run.model}".lower() for run in runs],
        "videos": {"files": videos.files, "clips": videos.clips, "fps": videos.fps, "frames": videos.num_frames},
    }


def _json(value: Any) -> str:
    """JSON that can stand inside a script element: no `<`, so nothing in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _template(name: str) -> str:
    return (resources.files("fsframework.run") / "templates" / name).read_text(encoding="utf-8")
