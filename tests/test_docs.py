"""The docs say what is so: generated parts, links, commands, pins."""

import ast
import html
import json
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import QUICK, ROOT, ROWS, build, load

import ablations  # isort: skip
import annotate  # isort: skip
import experiments  # isort: skip
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PAGES = [str(page.relative_to(ROOT)) for page in build.pages()]


@pytest.mark.parametrize("page", PAGES)
def test_generated_parts_are_fresh(page):
    text = (ROOT / page).read_text()
    assert build.rebuilt(text) == text, "run python docs/build.py"


def test_a_stale_part_is_noticed():
    text = (ROOT / "docs" / "ppo.md").read_text()
    assert build.rebuilt(text.replace("gae_lambda * ~dones[t] * gae", "...")) == text
    assert text.count("gae_lambda * ~dones[t] * gae") > 1


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_project(page):
    """Files exist, line ranges lie inside them, and anchors are there."""
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if lines := re.fullmatch(r"L(\d+)-L(\d+)", anchor):
            first, last = map(int, lines.groups())
            assert 1 <= first <= last <= len(path.read_text().splitlines()), target
        elif anchor:
            there = path.read_text()
            headings = re.findall(r"^#+ (.+)$", there, re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs or f'<a id="{anchor}"></a>' in there, target


@pytest.mark.parametrize("script", build.scripts())
def test_references_inside_scripts(script):
    """Pages that a script names exist, and lines of the official code are those of the registry."""
    text = re.sub(r"\n *# ?", " ", (ROOT / script).read_text())  # comments in one line each
    assert all((ROOT / path).exists() for path in re.findall(r"\bdocs/[\w.]+\.md", text))
    reference = re.compile(r"([\w/]+\.py)#L(\d+)(?:-L(\d+))?")
    registered = {}
    for detail in build.registry().values():
        for file, first, last in reference.findall(" ".join(detail["source"])):
            lines = range(int(first), int(last or first) + 1)
            registered.setdefault(file, set()).update(lines)
    found = reference.findall(text)
    assert len(found) > 10
    for file, first, last in found:
        assert {int(first), int(last or first)} <= registered[file], (file, first, last)


def test_every_detail_has_its_section():
    """In full on the page of the first script that has it; a link there on the others' pages."""
    for name, detail in build.registry().items():
        home = build.page(detail["scripts"][0], name).split("/")[1]
        for script in detail["scripts"][1:]:
            assert f"]({home})" in (ROOT / build.page(script, name).split("#")[0]).read_text()
        for script in detail["scripts"][:1]:
            text = (ROOT / build.page(script, name).split("#")[0]).read_text()
            section = text.split(f'<a id="{name}"></a>\n')[1].split("<a id=")[0]
            assert section.startswith(f"### {name} {detail['title']}\n")
            for part in ("**What.**", "**Why.**", "**Source.**", "**Mistakes.**", "**Remove it.**"):
                assert part in section, (name, part)
            for kind in (f"code {script} {name}", f"removal {script} {name}", f"source {name}"):
                assert f"<!-- begin {kind} -->" in section, (name, kind)


@pytest.mark.parametrize("script", build.scripts())
def test_annotated_source(script):
    """The page holds the script, line by line, and each marker's explanation stands beside it."""
    page = annotate.page(script)
    text = re.sub(r"<a href=.#L\d+.>\d+</a>", "", page)
    found = re.findall(
        r'<span class="line" id="L(\d+)">(.*?)</span>(?=<span class="line"|</pre>)', text
    )
    plain = [html.unescape(re.sub(r"<[^>]+>", "", line)).rstrip() for _, line in found]
    assert plain == (ROOT / script).read_text().splitlines()
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    beside = {}  # detail -> lines with which its explanations begin
    for row in page.split('<div class="row">')[1:]:
        first = int(re.search(r'id="L(\d+)"', row)[1])
        for name in re.findall(r'data-detail="([\w-]+)"', row):
            beside.setdefault(name, []).append(first)
        for target, anchor in re.findall(r'href="\.\./(\w+)\.html#([\w-]+)"', row):
            assert f'<a id="{anchor}"></a>' in (ROOT / "docs" / f"{target}.md").read_text()
    sites = build.markers((ROOT / script).read_text())
    assert beside == {name: [site["first"] for site in found] for name, found in sites.items()}
    notes = re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)
    assert "<math" in notes and "$" not in re.sub(r"<style>.*?</style>|<code>.*?</code>", "", notes)
    assert all(f"<strong>{word}.</strong>" in notes for word in ("What", "Why"))


def test_line_numbers_are_not_typed():
    """Outside generated parts no page names a line of a script."""
    for page in PAGES:
        by_hand = build.PART.sub("", (ROOT / page).read_text())
        assert not re.search(r"ppo\w*\.py(:\d|#L\d)", by_hand), page


def split_pin(line: str) -> tuple[str, set[str], str]:
    name, extras, version = re.fullmatch(r"([\w-]+)(?:\[([\w,-]+)\])?==([\w.]+)", line).groups()
    return name, set((extras or "").split(",")) - {""}, version


def test_the_script_headers_pin_what_requirements_pin():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = {name: rest for name, *rest in (split_pin(line) for line in lines if "==" in line)}
    for script in build.scripts():
        source = (ROOT / script).read_text()
        block = re.search(r"^# /// script$\n(.*?)^# ///$", source, re.MULTILINE | re.DOTALL)[1]
        header = tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))
        assert header["requires-python"] == ">=3.11"
        named = set()
        for name, extras, version in map(split_pin, header["dependencies"]):
            assert version == pins[name][1] and extras <= pins[name][0], name
            named.add(name)
        imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE))
        imported = {
            {"cv2": "opencv-python-headless", "ale_py": "ale-py"}.get(i, i) for i in imported
        }
        assert imported - sys.stdlib_module_names <= named


def test_the_readme_commands(capsys):
    """Each `python ppo.py ...` line of README and docs is a command line that exists."""
    lines = {line for page in PAGES for line in (ROOT / page).read_text().splitlines()}
    commands = [line.split("#")[0].split() for line in lines if line.startswith("python ppo")]
    assert len(commands) >= 5
    sizes = [*QUICK["ppo_continuous.py"][2:], "--total-timesteps", "512"]
    done = load("ppo.py").main([*sizes, "--eval-episodes", "1"])["folder"]
    half = Path("half")
    half.mkdir()
    ppo = load("ppo.py")
    checkpoint = ppo.load(Path(done))[1] | {"iteration": 1}
    checkpoint["args"] |= {"total_timesteps": 1024}
    ppo.torch.save(checkpoint, half / "checkpoint.pt")
    for _, script, *flags in commands:
        if "--resume" in flags:
            flags = [flag.replace("RUN", str(half)) for flag in flags]
        elif "--evaluate" in flags:
            flags = [flag.replace("RUN", done) for flag in flags] + ["--eval-episodes", "1"]
        elif "--help" not in flags:
            flags += [*sizes, "--eval-episodes", "1"]
        if "--help" in flags:
            with pytest.raises(SystemExit) as stop:
                load(script).main(flags)
            assert stop.value.code == 0 and "--learning-rate" in capsys.readouterr().out
        else:
            assert np.isfinite(load(script).main(flags)["greedy"]).all()


@pytest.mark.parametrize(
    ("script", "page", "right"),
    [
        ("ppo.py", "README.md", "action in (0, 1)"),
        ("ppo_atari.py", "docs/ppo_atari.md", "action in range(4) and reward in (-1, 0, 1)"),
        ("ppo_continuous.py", "docs/ppo_continuous.md", "action.shape == (1,) and reward == 1"),
        ("ppo_lstm.py", "docs/ppo_lstm.md", "action in (0, 1) and state.any()"),
        ("ppo_multidiscrete.py", "docs/ppo_multidiscrete.md", "action.tolist() in ([0], [1])"),
    ],
    indirect=["script"],
)
def test_loading_an_agent_as_the_docs_show(script, page, right):
    flags = [*QUICK[script], "--total-timesteps", str(ROWS[script]), "--eval-episodes", "0"]
    run = load(script).main(flags)["folder"]
    code = re.search(r"```python\n(import torch.*?)```", (ROOT / page).read_text(), re.S)[1]
    code = f"RUN = {run!r}\n{code}\nassert {right}"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)


def test_your_own_environment_network_and_log_as_the_docs_show():
    environment, network, log = blocks("docs/research.md")
    Path("corridor.py").write_text(environment)
    ppo = load("ppo.py")
    exec(network, ppo.__dict__)
    exec(log, ppo.__dict__)
    ppo.Run.write_log = ppo.write_log
    flags = ["--env-id", "corridor:Corridor-v0", *QUICK["ppo.py"][2:], "--learning-rate", "0.001"]
    result = ppo.main([*flags, "--total-timesteps", "10240", "--eval-episodes", "2"])
    assert min(result["greedy"]) > 0.89  # at most ten steps
    lines = Path(result["folder"], "log.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert {"losses/value_loss", "charts/episodic_return", "step"} <= {k for x in logged for k in x}
    assert logged[-1]["step"] == 10240


def definitions(script: str, *names: str) -> dict[str, str]:
    """Classes and functions of a script by name, without the markers above them."""
    source = (ROOT / script).read_text()
    nodes = {getattr(node, "name", None): node for node in ast.parse(source).body}
    return {name: ast.get_source_segment(source, nodes[name]) for name in names}


def test_atari_with_memory_as_the_docs_show():
    """What the page says is copied from ppo_atari.py, and the lines it says change: it trains on
    Pong, and its first ratio is 1."""
    page = (ROOT / "docs" / "ppo_lstm.md").read_text().split("## Atari, from pictures")[1]
    prose, diff = page.split("```diff\n")[0], page.split("```diff\n")[1].split("```")[0]
    named = re.findall(r"`(\w+)`", prose)
    classes = [name for name in named if name[0].isupper() and name != "GAME"]
    assert len(classes) == 6
    source = (ROOT / "ppo_lstm.py").read_text()
    own, other = (definitions(s, "make_env")["make_env"] for s in ("ppo_lstm.py", "ppo_atari.py"))
    atari = (ROOT / "ppo_atari.py").read_text()
    game = next(line for line in atari.splitlines() if line.startswith("GAME ="))
    copied = "\n\n\n".join(definitions("ppo_atari.py", *classes).values())
    heads = [line.strip("`") for line in re.findall(r"`(?:import|gym\.register)[^`]+`", prose)]
    assert len(heads) == 3
    source = source.replace(own, other)
    for hunk in diff.strip().split("\n\n"):
        lines = hunk.splitlines()
        find, replace = ("\n".join(x[1:] for x in lines if x[0] == sign) for sign in "-+")
        assert source.count(find) == 1, find
        source = source.replace(find, replace)
    layer = definitions("ppo_lstm.py", "layer_init")["layer_init"]
    assert source.count(layer) == 1
    source = source.replace(layer, f"{layer}\n\n\n{copied}\n\n")
    source = source.replace('SCRIPT = "ppo_lstm"', "\n".join([*heads, game, 'SCRIPT = "ppo_lstm"']))
    module = types.ModuleType("atari_lstm")
    sys.modules["atari_lstm"] = module
    exec(compile(source, "atari_lstm.py", "exec"), module.__dict__)
    flags = "--env-id PongNoFrameskip-v4 --num-envs 4 --num-steps 8 --num-minibatches 2"
    folder = module.main([*flags.split(), "--total-timesteps", "64", "--eval-episodes", "0"])[
        "folder"
    ]
    agent = torch.load(f"{folder}/checkpoint.pt", weights_only=True)["agent"]
    assert agent["lstm.trunk.conv1.weight"].shape == (32, 1, 8, 8)
    assert agent["lstm.weight_ih_l0"].shape == (512, 512)
    errors = EventAccumulator(folder).Reload().Scalars("debug/first_ratio_error")
    assert len(errors) == 2 and all(event.value < 1e-4 for event in errors)


def test_documented_tags_are_the_logged_ones(ppo, script):
    steps = 20 * ROWS[script]
    flags = [*QUICK[script], "--env-id", "known_envs:Ends-v0", "--total-timesteps", str(steps)]
    run = ppo.main([*flags, "--eval-episodes", "0"])["folder"]
    tags = set(EventAccumulator(run).Reload().Tags()["scalars"])
    pages = {"ppo.md", script.replace(".py", ".md")}  # a child's page has what it adds
    text = "".join((ROOT / "docs" / page).read_text() for page in pages)
    assert tags == set(re.findall(r"`((?:charts|losses|debug)/\w+)`", text))
    assert json.loads(Path(run, "args.json").read_text())["total_timesteps"] == steps


def test_nothing_but_ruff_is_left_to_taste():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, ROOT], capture_output=True)
        assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize(
    "without, adds, verdict",
    [
        ([1, 1, 1, 1, 1], 7.0, "helps"),
        ([-190, -150, -150, -150, -150], 166.0, "helps, 1 of 5 seeds learn nothing without it"),
        ([20, 20, 20, 20, 20], -12.0, "hurts"),
        ([4, 12, 8, 4, 12], 0.0, "no difference seen"),
        ([-200, -180, -200, -180, -190], 198.0, "does not learn without it"),
        (
            ["", 8, 8, 8, 8],  # stopped: worth what it had learned, nothing
            41.6,
            "no difference seen, 1 of 5 seeds learn nothing without it (1 of 5 runs without it"
            " stopped by themselves)",
        ),
        ([-20], 28.0, "learns without it"),
        ([-190], 198.0, "does not learn without it"),
    ],
)
def test_what_an_ablation_says(tmp_path, monkeypatch, without, adds, verdict):
    """Difference, interval and verdict of made-up scores, where -200 is what is not learned.

    Welch's interval against a constant is that of one mean: m +- 2.776 s / sqrt(5). One seed has
    none.
    """
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    experiment = experiments.EXPERIMENTS["ablation-masks"]
    rows = [
        {"variant": variant, "seed": seed, "score": score}
        | ({} if score != "" else {"stopped": "NaN"})
        for variant, scores in zip(experiment.variants, ([8] * len(without), without), strict=True)
        for seed, score in enumerate(scores, 1)
    ]
    experiments.append(tmp_path / "ablation-masks.csv", experiment.header, rows)
    curve = [
        {"variant": "Taxi-v4", "seed": seed, "step": step, "return": score}
        for seed in range(1, 6)
        for step, score in ((500, -200), (1000, 8))
    ]
    experiments.append(tmp_path / "ablation-masks-curves.csv", experiments.CURVE, curve)
    (effect,) = ablations.effects("ablation-masks")
    assert effect.adds == pytest.approx(adds) and effect.gain == 208
    scores, chance = [score if score != "" else -200 for score in without], "one seed"
    if len(scores) > 1:
        half, chance = 2.776445 * np.std(scores, ddof=1) / 5**0.5, "95% interval"
        assert effect.interval == pytest.approx((adds - half, adds + half), abs=1e-3)
    assert effect.verdict == verdict
    assert f"It adds {adds:.1f} ({chance}" in ablations.section("aux-04")
    assert verdict in ablations.table("ablation-masks")
