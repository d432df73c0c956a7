"""Makes docs/assets/demo.webp from the run directories of `make demo`: `python docs/make_picture.py [runs/demo]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from fsframework.data.video import read_video

RUNS = ("static", "foresight")
TITLES = {"reference": "full compute", "static": "static reuse", "foresight": "Foresight"}
CLIP, GAP, LEFT, TOP, MAP_WIDTH = 128, 8, 12, 74, 400
GROUND, INK, FAINT, REUSED = (255, 255, 255), (32, 36, 40), (110, 118, 126), (0, 114, 178)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own scalable font."""
    return ImageFont.load_default(size=size)


def clips(folder: Path, key: str) -> list[np.ndarray]:
    """The uint8 [T, H, W, 3] videos of a run, in order."""
    rows = sorted((json.loads(x) for x in (folder / "videos.jsonl").read_text().splitlines()), key=lambda r: r["index"])
    return [read_video(folder / row[key]) for row in rows]


def heat_map(folder: Path) -> Image.Image:
    """Sites x steps, shade by the share of videos in which the block was reused."""
    trace = pd.read_parquet(folder / "trace.parquet")
    sites = list(dict.fromkeys(trace["site"]))
    share = (
        trace.assign(reused=trace["decision"] == "reuse").pivot_table("reused", "site", "step").loc[sites].to_numpy()
    )
    shade = np.array(GROUND) * 0.93 * (1 - share[..., None]) + np.array(REUSED) * share[..., None]
    return Image.fromarray(shade.astype(np.uint8))


def main() -> None:
    """Write the picture."""
    runs_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    folders = {name: next(runs_dir.glob(f"{name}-*")) for name in RUNS}
    metrics = {name: json.loads((folder / "metrics.json").read_text()) for name, folder in folders.items()}
    columns = {
        "reference": clips(folders["static"], "reference_file"),
        **{n: clips(f, "file") for n, f in folders.items()},
    }
    num_rows = min(3, len(columns["reference"]))
    height = TOP + num_rows * (CLIP + GAP) + 30
    map_left = LEFT + 3 * (CLIP + GAP) + 28
    canvas = Image.new("RGB", (map_left + MAP_WIDTH + 16, height), GROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((LEFT, 10), "tiny-latte, 50 steps, the same noise in every column", font=font(18), fill=INK)
    for i, name in enumerate(columns):
        x = LEFT + i * (CLIP + GAP)
        draw.text((x, 40), TITLES[name], font=font(15), fill=INK)
        if name in metrics:
            m = metrics[name]
            note = f"{m['speedup']['mean']:.2f}x, {m['psnr']['mean']:.1f} dB"
            draw.text((x, 57), note, font=font(12), fill=FAINT)
    rows = heat_map(folders["foresight"]).resize((MAP_WIDTH, num_rows * (CLIP + GAP) - GAP), Image.Resampling.NEAREST)
    canvas.paste(rows, (map_left, TOP))
    draw.text((map_left, 40), "what Foresight reused (blue)", font=font(15), fill=INK)
    draw.text((map_left, 57), "blocks s0 t0 s1 t1 ... from top to bottom, share of videos", font=font(12), fill=FAINT)
    draw.text((map_left, height - 26), "denoising step 0", font=font(12), fill=FAINT)
    draw.text((map_left + MAP_WIDTH - 16, height - 26), "49", font=font(12), fill=FAINT)
    frames = []
    for t in range(columns["reference"][0].shape[0]):
        frame = canvas.copy()
        for i, videos in enumerate(columns.values()):
            for j, video in enumerate(videos[:num_rows]):
                picture = Image.fromarray(video[t]).resize((CLIP, CLIP), Image.Resampling.NEAREST)
                frame.paste(picture, (LEFT + i * (CLIP + GAP), TOP + j * (CLIP + GAP)))
        frames.append(frame)
    out = Path(__file__).resolve().parent / "assets" / "demo.webp"
    out.parent.mkdir(exist_ok=True)
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=125, loop=0, quality=82, method=6)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB, {len(frames)} frames of {canvas.size[0]} x {canvas.size[1]}")


if __name__ == "__main__":
    main()
