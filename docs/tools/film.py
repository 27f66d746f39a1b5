"""Films of agents: python docs/tools/film.py RUN [RUN ...], or with --learning

RUNs: each run's script plays one greedy game with --capture-video, and the games stand side by side
in docs/figures/agents.gif (--name: another name, --seconds: another length). A game that is shorter
than the film begins again. --learning trains ppo.py on CartPole and puts games of the same agent
after 0, 25,000, 100,000 and 500,000 steps into docs/figures/learning.gif, and the run's log, with
what each curve should do, into docs/figures/healthy.svg.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from contextlib import chdir
from copy import deepcopy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from details import DOCS, ROOT
from figures import BLUE, GREY, save
from moviepy import VideoFileClip
from PIL import Image, ImageDraw
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SIZE, FPS, SECONDS, COLORS = 200, 12, 8, 96  # pixels of a side; what keeps a film under 2 MB
STAGES = (0, 25_000, 100_000, 500_000)  # steps of the run whose agents are shown
HEALTHY = {  # tag -> what to expect of it
    "charts/episodic_return": "rises, may pause at 200 to 400",
    "losses/entropy": "from ln 2 = 0.69, falls slowly",
    "losses/approx_kl": "below 0.02, near 0 at the end",
    "losses/clipfrac": "0 to 0.2",
    "losses/explained_variance": "rises towards 1, then means little:\nall returns are alike",
    "losses/value_loss": "of any size; large while returns grow",
    "losses/grad_norm": "of any size, no rise without end",
    "charts/learning_rate": "a line down to 0",
}


def frames(run: Path, mode: str = "greedy") -> list[Image.Image]:
    """Square pictures of one game of a run's agent, FPS of them per second."""
    script = torch.load(run / "checkpoint.pt", weights_only=True)["script"]
    command = [sys.executable, ROOT / f"{script}.py", "--evaluate", run]
    subprocess.run([*command, "--capture-video", "--eval-episodes", "1"], check=True)
    (path,) = (run / "videos" / mode).glob("*.mp4")
    with VideoFileClip(str(path)) as clip:
        pictures = [Image.fromarray(picture) for picture in clip.iter_frames(fps=FPS)]
    side = min(pictures[0].size)
    left, top = (pictures[0].width - side) // 2, (pictures[0].height - side) // 2
    box = (left, top, left + side, top + side)
    return [picture.crop(box).resize((SIZE, SIZE)) for picture in pictures]


def write(name: str, games: list[list[Image.Image]], seconds: int = SECONDS) -> None:
    """The games side by side."""
    film = []
    for i in range(FPS * seconds):
        row = np.hstack([np.asarray(game[i % len(game)]) for game in games])
        film.append(Image.fromarray(row).quantize(COLORS))
    path = DOCS / "figures" / f"{name}.gif"
    film[0].save(path, save_all=True, append_images=film[1:], duration=1000 // FPS, loop=0)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def learning() -> None:
    """Train, keep the agent at each stage, film them, draw the log."""
    sys.path.insert(0, str(ROOT))
    import ppo

    keep, first, wanted = ppo.save, {}, list(STAGES[1:])

    class Agent(ppo.Agent):
        def __init__(self, *spaces):
            super().__init__(*spaces)
            first.setdefault("agent", deepcopy(self.state_dict()))

    def save_and_copy(folder, args, agent, optimizer, step, returns):
        keep(folder, args, agent, optimizer, step, returns)
        if wanted and step > wanted[0] - args.batch_size:
            shutil.copytree(folder, f"after-{wanted.pop(0)}")

    ppo.Agent, ppo.save = Agent, save_and_copy
    with tempfile.TemporaryDirectory() as place, chdir(place):
        run = ppo.main(["--checkpoint-every", "0", "--eval-episodes", "0"])["folder"]
        shutil.copytree(f"after-{STAGES[1]}", "after-0")
        checkpoint = torch.load("after-0/checkpoint.pt", weights_only=True)
        torch.save(checkpoint | {"agent": first["agent"], "step": 0}, "after-0/checkpoint.pt")
        games = []
        for stage in STAGES:
            games.append(frames(Path(f"after-{stage}").resolve(), "sampled"))
            for picture in games[-1]:
                ImageDraw.Draw(picture).text((8, 8), f"{stage:,} steps", fill=(90, 90, 90))
        write("learning", games)
        healthy(EventAccumulator(run, size_guidance={"scalars": 0}).Reload())


def healthy(log: EventAccumulator) -> None:
    """The curves of TensorBoard, each with what it should do."""
    fig, panels = plt.subplots(2, 4, figsize=(11, 5))
    for axes, (tag, said) in zip(panels.flat, HEALTHY.items()):
        steps, values = zip(*((event.step, event.value) for event in log.Scalars(tag)))
        axes.plot(steps, values, color=BLUE, linewidth=0.8)
        axes.set_title(tag, color=GREY, fontsize=10)
        axes.set_xlabel(said, fontsize=9)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
        if tag == "losses/explained_variance":
            axes.set_ylim(-1, 1.05)
    save(fig, "healthy")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="run folders")
    parser.add_argument("--name", default="agents", help="of the film")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of the film")
    parser.add_argument("--learning", action="store_true", help="train and film ppo.py instead")
    args = parser.parse_args()
    if args.learning:
        learning()
    else:
        write(args.name, [frames(run.resolve()) for run in args.runs], args.seconds)
