"""Draw the pictures that explain: python docs/tools/pictures.py

Writes docs/figures/loop.svg, clip.svg, grid.svg, autoreset.svg, gae.svg and iteration.svg, as
the other figures readable on white and on black.
"""

import matplotlib.pyplot as plt
import numpy as np
from figures import BLUE, COLORS, GREEN, GREY, PINK, RED, YELLOW, save
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle


def canvas(width: float, height: float) -> tuple[plt.Figure, plt.Axes]:
    """An empty picture, measured in inches from its lower left corner."""
    fig, axes = plt.subplots(figsize=(width, height))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return fig, axes


def box(axes, x, y, width, height, text, color=BLUE) -> None:
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, style, fc="none", ec=color, linewidth=2))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center")


def arrow(axes, start, end, bend=0.0) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 12, "color": GREY}
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **style))


def loop() -> None:
    """Agent and environment."""
    fig, axes = canvas(7, 2)
    box(axes, 0.2, 0.6, 2, 0.9, "agent\n(policy)")
    box(axes, 4.8, 0.6, 2, 0.9, "environment\n(state)", GREEN)
    arrow(axes, (2.25, 1.3), (4.75, 1.3))
    arrow(axes, (4.75, 0.8), (2.25, 0.8))
    axes.text(3.5, 1.42, "action", ha="center")
    axes.text(3.5, 0.5, "observation, reward,\nis the episode over?", ha="center", va="center")
    save(fig, "loop")


def clip(epsilon=0.2) -> None:
    """The clipped objective over the ratio."""
    fig, panels = plt.subplots(1, 2, figsize=(7, 2.8))
    ratio = np.linspace(0, 2, 401)
    for axes, advantage in zip(panels, (1, -1)):
        clipped = ratio.clip(1 - epsilon, 1 + epsilon)
        objective = np.minimum(ratio * advantage, clipped * advantage)
        axes.plot(ratio, ratio * advantage, "--", color=GREY, linewidth=1, label="ratio x A")
        axes.plot(ratio, objective, color=BLUE, linewidth=2.5, label="clipped objective")
        axes.plot(1, advantage, "o", color=RED)
        flat = (1 + epsilon, 2) if advantage > 0 else (0, 1 - epsilon)
        axes.axvspan(*flat, color=YELLOW, alpha=0.25, linewidth=0)
        axes.text(np.mean(flat), -0.6 if advantage > 0 else -1.6, "gradient 0", ha="center")
        axes.set_title(f"A {'>' if advantage > 0 else '<'} 0", color=GREY)
        axes.set(xlabel="ratio", xticks=[0, 1 - epsilon, 1 + epsilon, 2])
        axes.set_ylim((-0.8, 2.1) if advantage > 0 else (-2.1, 0.8))
    panels[0].legend(frameon=False, labelcolor=GREY, loc="upper left", fontsize=9)
    save(fig, "clip")


def grid(steps=10) -> None:
    """A rollout: T steps to the right, N environments below each other."""
    fig, axes = canvas(8.2, 3.4)
    side, left, top = 0.55, 1.3, 2.3
    ends = {0: {3: "terminated"}, 1: {6: "truncated"}, 2: {}, 3: {1: "terminated", 7: "terminated"}}
    for i, found in ends.items():
        episode, y = 0, top - i * side
        axes.text(left - 0.15, y + side / 2, f"env {i}", ha="right", va="center")
        for t in range(steps):
            x = left + t * side
            color = (BLUE, GREEN, PINK)[episode]
            axes.add_patch(Rectangle((x, y), side, side, fc=color, alpha=0.25, ec=GREY))
            if t in found:
                mark, color = ("0", RED) if found[t] == "terminated" else ("V", BLUE)
                axes.plot([x + side] * 2, [y, y + side], color=color, linewidth=4)
                axes.text(x + side / 2, y + side / 2, mark, ha="center", va="center")
                episode += 1
        axes.text(left + steps * side + 0.1, y + side / 2, "V(next_obs[T-1])", va="center")
    for t in range(steps):
        axes.text(left + (t + 0.5) * side, top + side + 0.1, t, ha="center", fontsize=9)
    axes.text(left - 0.15, top + side + 0.1, "row t", ha="right", fontsize=9)
    axes.plot([0.3, 0.55], [0.25, 0.25], color=RED, linewidth=4)
    axes.text(0.65, 0.25, "terminated: nothing comes after, 0", va="center", fontsize=10)
    axes.plot([4.3, 4.55], [0.25, 0.25], color=BLUE, linewidth=4)
    axes.text(4.65, 0.25, "truncated: cut here, V(next_obs[t])", va="center", fontsize=10)
    save(fig, "grid")


def autoreset(length=3, rows=8) -> None:
    """Which rows of a rollout are not what they seem, by how Gymnasium resets."""
    fig, axes = canvas(8.4, 2.9)
    for place, mode in enumerate(("next step", "same step", "none")):
        y, episode, step = 1.9 - 0.7 * place, 0, 0
        axes.text(1.05, y + 0.25, mode, ha="right", va="center")
        for t in range(rows):
            fake = mode == "next step" and t % (length + 1) == length
            ends = not fake and step == length - 1
            false = ends and mode == "same step"
            text = "reset" if fake else f"{episode}.{step}"
            wrong = {"fc": RED, "alpha": 0.35} if fake or false else {"fc": "none"}
            axes.add_patch(Rectangle((1.2 + 0.88 * t, y), 0.84, 0.5, ec=GREY, **wrong))
            axes.text(1.62 + 0.88 * t, y + 0.25, text, ha="center", va="center", fontsize=10)
            if ends:
                axes.plot([2.04 + 0.88 * t] * 2, [y - 0.03, y + 0.53], color=BLUE, linewidth=4)
            step = 0 if fake or (ends and mode != "next step") else step + 1
            episode += fake or (ends and mode != "next step")
    for t in range(rows):
        axes.text(1.62 + 0.88 * t, 2.5, f"row {t}", ha="center", fontsize=9)
    said = "episode.step of obs; blue: an end; red: a step that only resets, or a false next_obs"
    axes.text(4.2, 0.15, said, ha="center", fontsize=9)
    save(fig, "autoreset")


def gae(gamma=0.99) -> None:
    """How much the surprise of a later step weighs in an advantage."""
    fig, axes = plt.subplots(figsize=(7, 2.8))
    later = np.arange(61)
    for value, color in zip((0, 0.95, 1), COLORS):
        weights = (gamma * value) ** later
        axes.plot(later, weights, ".-", color=color, markersize=4, label=f"lambda = {value}")
    axes.set(xlabel="steps later", ylabel="weight of its delta")
    axes.legend(frameon=False, labelcolor=GREY)
    save(fig, "gae")


def iteration() -> None:
    """One iteration, with its shapes."""
    fig, axes = canvas(8.4, 3.1)
    box(
        axes,
        0.1,
        1.9,
        2.3,
        1.0,
        "2 rollout\nobs, next_obs (T, N, D)\nactions, logprobs,\nrewards, dones (T, N)",
    )
    box(
        axes,
        3.0,
        1.9,
        2.3,
        1.0,
        "3 advantages\nvalues, next_values,\nadvantages, returns\n(T, N)",
        GREEN,
    )
    box(
        axes,
        5.9,
        1.9,
        2.4,
        1.0,
        "4 batch\nevery array flattened,\nB = T x N rows: (B, ...)",
        YELLOW,
    )
    box(
        axes, 5.9, 0.3, 2.4, 1.0, "minibatch\nM = B / 4 rows:\nmb_obs (M, D), the rest (M,)", YELLOW
    )
    box(axes, 3.0, 0.3, 2.3, 1.0, "loss, one number\ngradient, clipped\none step of Adam", PINK)
    arrow(axes, (2.42, 2.4), (2.98, 2.4))
    arrow(axes, (5.32, 2.4), (5.88, 2.4))
    arrow(axes, (7.1, 1.88), (7.1, 1.32))
    axes.text(7.2, 1.6, "shuffled, cut", va="center", fontsize=9)
    arrow(axes, (5.88, 0.8), (5.32, 0.8))
    arrow(axes, (4.6, 1.32), (6.2, 1.85), bend=-0.25)
    axes.text(4.2, 1.6, "4 x 4 times", va="center", ha="center", fontsize=9)
    arrow(axes, (2.98, 0.8), (1.2, 1.85), bend=-0.3)
    axes.text(
        0.9, 1.0, "next iteration:\nplay with the new policy", va="center", ha="center", fontsize=9
    )
    save(fig, "iteration")


if __name__ == "__main__":
    for picture in (loop, clip, grid, autoreset, gae, iteration):
        picture()
