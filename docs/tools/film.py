"""Film trained agents side by side: python docs/tools/film.py RUN [RUN ...]

Has each run's script play one greedy game with --capture-video, and puts the games side by side
into docs/figures/agents.gif. A game that is shorter than the film begins again.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from details import DOCS, ROOT
from moviepy import VideoFileClip
from PIL import Image

SIZE, FPS, SECONDS, COLORS = 200, 12, 8, 96  # pixels of a side; what keeps the film under 2 MB


def frames(run: Path) -> list[Image.Image]:
    """Square pictures of one game of a run's agent, FPS of them per second."""
    script = torch.load(run / "checkpoint.pt", weights_only=True)["script"]
    command = [sys.executable, ROOT / f"{script}.py", "--evaluate", run]
    subprocess.run([*command, "--capture-video", "--eval-episodes", "1"], check=True)
    (path,) = (run / "videos" / "greedy").glob("*.mp4")
    with VideoFileClip(str(path)) as clip:
        pictures = [Image.fromarray(picture) for picture in clip.iter_frames(fps=FPS)]
    side = min(pictures[0].size)
    left, top = (pictures[0].width - side) // 2, (pictures[0].height - side) // 2
    box = (left, top, left + side, top + side)
    return [picture.crop(box).resize((SIZE, SIZE)) for picture in pictures]


def main(runs: list[Path]) -> None:
    games = [frames(run) for run in runs]
    film = []
    for i in range(FPS * SECONDS):
        row = np.hstack([np.asarray(game[i % len(game)]) for game in games])
        film.append(Image.fromarray(row).quantize(COLORS))
    path = DOCS / "figures" / "agents.gif"
    film[0].save(path, save_all=True, append_images=film[1:], duration=1000 // FPS, loop=0)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main([Path(run).resolve() for run in sys.argv[1:]])
