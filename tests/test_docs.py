"""The docs say what is so: generated parts, links, commands, pins."""

import html
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import annotate
import numpy as np
import pytest
from build import PAGES, PART, rebuilt
from details import ROOT, SCRIPTS, markers, page, registry, section
from harness import load
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PAGES = [str(path.relative_to(ROOT)) for path in PAGES]
SIZES = "--num-envs 4 --num-steps 8 --num-minibatches 2 --update-epochs 1".split()  # 32 rows
ENVS = {  # that a script plays quickly
    "ppo.py": "CartPole-v1",
    "ppo_atari.py": "BreakoutNoFrameskip-v4",
    "ppo_continuous.py": "InvertedPendulum-v5",
    "ppo_lstm.py": "CartPole-v1",
    "ppo_multidiscrete.py": "CartPole-v1",
}


@pytest.mark.parametrize("path", PAGES)
def test_generated_parts_are_fresh(path):
    text = (ROOT / path).read_text()
    assert rebuilt(text) == text, "run python docs/tools/build.py"


def test_a_stale_part_is_noticed():
    fresh = rebuilt("<!-- begin code ppo.py core-05 -->\n<!-- end -->\n")
    assert "def compute_gae" in fresh and rebuilt(fresh.replace("gae", "...")) == fresh


@pytest.mark.parametrize("home", PAGES)
def test_links_inside_the_project(home):
    """Files exist, line ranges lie inside them, and anchors are there."""
    text = (ROOT / home).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / home).parent / name if name else ROOT / home
        assert path.exists(), target
        if lines := re.fullmatch(r"L(\d+)-L(\d+)", anchor):
            first, last = map(int, lines.groups())
            assert 1 <= first <= last <= len(path.read_text().splitlines()), target
        elif anchor:
            there = path.read_text()
            headings = re.findall(r"^#+ (.+)$", there, re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs or f'<a id="{anchor}"></a>' in there, target


@pytest.mark.parametrize("script", SCRIPTS)
def test_references_inside_scripts(script):
    """Pages that a script names exist, and lines of the official code are those of the registry."""
    text = re.sub(r"\n *# ?", " ", (ROOT / script).read_text())  # comments in one line each
    assert all((ROOT / path).exists() for path in re.findall(r"\bdocs/[\w.]+\.md", text))
    reference = re.compile(r"([\w/]+\.py)#L(\d+)(?:-L(\d+))?")
    registered = {}
    for detail in registry().values():
        for file, first, last in reference.findall(" ".join(detail["source"])):
            lines = range(int(first), int(last or first) + 1)
            registered.setdefault(file, set()).update(lines)
    found = reference.findall(text)
    assert len(found) > 10
    for file, first, last in found:
        assert {int(first), int(last or first)} <= registered[file], (file, first, last)


def test_every_detail_has_its_section():
    """In full on the page of the first script that has it; a link there on the others' pages."""
    for name, detail in registry().items():
        first, *others = detail["scripts"]
        home = Path(page(first)).name
        for script in others:
            assert f"]({home}#{name})" in (ROOT / page(script)).read_text(), (name, script)
        text = section(name)
        assert text.startswith(f"### {name} {detail['title']}\n")
        for part in ("**What.**", "**Why.**", "**Source.**", "**Mistakes.**", "**Remove it.**"):
            assert part in text, (name, part)
        for kind in (f"code {first} {name}", f"removal {first} {name}", f"source {name}"):
            assert f"<!-- begin {kind} -->" in text, (name, kind)


@pytest.mark.parametrize("script", SCRIPTS)
def test_annotated_source(script):
    """The page holds the script, line by line, and each marker's explanation stands beside it."""
    whole = annotate.page(script)
    text = re.sub(r"<a href=.#L\d+.>\d+</a>", "", whole)
    found = re.findall(
        r'<span class="line" id="L(\d+)">(.*?)</span>(?=<span class="line"|</pre>)', text
    )
    plain = [html.unescape(re.sub(r"<[^>]+>", "", line)).rstrip() for _, line in found]
    assert plain == (ROOT / script).read_text().splitlines()
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    beside = {}  # detail -> lines with which its explanations begin
    for row in whole.split('<div class="row">')[1:]:
        first = int(re.search(r'id="L(\d+)"', row)[1])
        for name in re.findall(r'data-detail="([\w-]+)"', row):
            beside.setdefault(name, []).append(first)
        for target, anchor in re.findall(r'href="\.\./(\w+)\.html#([\w-]+)"', row):
            assert f'<a id="{anchor}"></a>' in (ROOT / "docs" / f"{target}.md").read_text()
    sites = markers((ROOT / script).read_text())
    assert beside == {name: [site["first"] for site in found] for name, found in sites.items()}
    notes = re.sub(r"<pre>.*?</pre>", "", whole, flags=re.DOTALL)
    assert "<math" in notes and "$" not in re.sub(r"<style>.*?</style>|<code>.*?</code>", "", notes)
    assert notes.count("<strong>Why.</strong>") == len(sites)  # each is said once


def test_line_numbers_are_not_typed():
    """Outside generated parts no page names a line of a script."""
    for path in PAGES:
        by_hand = PART.sub("", (ROOT / path).read_text())
        assert not re.search(r"ppo\w*\.py(:\d|#L\d)", by_hand), path


def test_no_formula_or_command_is_cut_by_a_line_end():
    """GitHub shows a formula as it stands if a line ends within it."""
    for path in PAGES:
        text = re.sub(r"^ *```.*?^ *```", "", (ROOT / path).read_text(), flags=re.M | re.S)
        cut = [
            line
            for line in text.splitlines()
            if line.replace("$$", "").count("$") % 2 or line.count("`") % 2
        ]
        assert not cut, (path, cut)


def split_pin(line: str) -> tuple[str, set[str], str]:
    name, extras, version = re.fullmatch(r"([\w-]+)(?:\[([\w,-]+)\])?==([\w.]+)", line).groups()
    return name, set((extras or "").split(",")) - {""}, version


def test_the_script_headers_pin_what_requirements_pin():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = {name: rest for name, *rest in (split_pin(line) for line in lines if "==" in line)}
    for script in SCRIPTS:
        source = (ROOT / script).read_text()
        block = re.search(r"^# /// script$\n(.*?)^# ///$", source, re.MULTILINE | re.DOTALL)[1]
        header = tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))
        assert header["requires-python"] == ">=3.11,<3.14"
        named = set()
        for name, extras, version in map(split_pin, header["dependencies"]):
            assert version == pins[name][1] and extras <= pins[name][0], name
            named.add(name)
        imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE))
        imported = {
            {"cv2": "opencv-python-headless", "ale_py": "ale-py"}.get(i, i) for i in imported
        }
        assert imported - sys.stdlib_module_names <= named


COMMANDS = {
    line.split("#")[0].strip()
    for path in PAGES
    for line in (ROOT / path).read_text().splitlines()
    if line.startswith("python ppo")
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_of_the_pages(command, capsys):
    """Each `python ppo.py ...` line is a command line that exists."""
    _, script, *flags = command.split()
    if "--help" in flags:
        with pytest.raises(SystemExit) as stop:
            load(script).main(flags)
        assert stop.value.code == 0 and "--learning-rate" in capsys.readouterr().out
        return
    short = [*SIZES, "--total-timesteps", "32", "--eval-episodes", "0"]
    if "RUN" in flags:
        run = load(script).main(short)["folder"]
        flags = [flag.replace("RUN", run) for flag in flags]
        more = ["--total-timesteps", "64"] if "--resume" in flags else []
        short = [*more, "--eval-episodes", "1"]
    result = load(script).main([*flags, *short])
    assert np.isfinite(result.get("greedy", 0)).all()
    assert Path(result["folder"], "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("script", "home", "right"),
    [
        ("ppo.py", "README.md", "action in (0, 1)"),
        ("ppo_atari.py", "docs/ppo_atari.md", "action in range(4) and reward in (-1, 0, 1)"),
        ("ppo_continuous.py", "docs/ppo_continuous.md", "action.shape == (1,) and reward == 1"),
        ("ppo_lstm.py", "docs/ppo_lstm.md", "action in (0, 1) and state.any()"),
        ("ppo_multidiscrete.py", "docs/ppo_multidiscrete.md", "action.tolist() in ([0], [1])"),
    ],
)
def test_loading_an_agent_as_the_docs_show(script, home, right):
    flags = ["--env-id", ENVS[script], *SIZES, "--total-timesteps", "32", "--eval-episodes", "0"]
    run = load(script).main(flags)["folder"]
    code = re.search(r"```python\n(import torch.*?)```", (ROOT / home).read_text(), re.S)[1]
    for more in re.findall(r"```python\n(import copy.*?)```", (ROOT / home).read_text(), re.S):
        code += f"{more}\nright = agent.policy(torch.as_tensor(agent.normalize(obs))).mode()\n"
        code += "assert torch.allclose(exported.module()(torch.as_tensor(obs)), right)"
    code = f"RUN = {run!r}\n{code}\nassert {right}"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0


def test_your_own_environment_network_and_log_as_the_docs_show(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)  # as a script does with its own folder
    text = (ROOT / "docs" / "research.md").read_text()
    environment, network, log = re.findall(r"```python\n(.*?)```", text, re.S)
    Path("corridor.py").write_text(environment)
    ppo = load("ppo.py")
    exec(network, ppo.__dict__)
    exec(log, ppo.__dict__)
    flags = ["--env-id", "corridor:Corridor-v0", "--learning-rate", "0.001"]
    result = ppo.main([*flags, "--total-timesteps", "10240", "--eval-episodes", "2"])
    assert min(result["greedy"]) > 0.89  # at most ten steps
    lines = Path(result["folder"], "log.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert {"losses/value_loss", "charts/episodic_return", "step"} <= {k for x in logged for k in x}
    assert logged[-1]["step"] == 10240


def test_the_clip_as_a_penalty_as_the_docs_show():
    """The page's own code says that two gradients are equal; here they are worked out by hand."""
    text = (ROOT / "docs" / "understanding.md").read_text()
    found = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], found)
    ratio = np.exp(np.linspace(-0.5, 0.5, 101))
    for name in ("one", "two"):  # of the last advantage, -0.3
        np.testing.assert_allclose(found[name], np.where(ratio < 0.8, 0, -0.3 * ratio), atol=1e-12)


def test_documented_tags_are_the_logged_ones(ppo, script):
    flags = ["--env-id", "known_envs:Ends-v0", *SIZES, "--total-timesteps", "640"]
    run = ppo.main([*flags, "--eval-episodes", "0"])["folder"]
    tags = set(EventAccumulator(run).Reload().Tags()["scalars"])
    pages = {page("ppo.py"), page(script)}  # a child's page has what it adds
    text = "".join((ROOT / path).read_text() for path in pages)
    assert tags == set(re.findall(r"`((?:charts|losses|debug)/\w+)`", text))
    assert json.loads(Path(run, "args.json").read_text())["total_timesteps"] == 640


def test_nothing_but_ruff_is_left_to_taste():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, ROOT], capture_output=True)
        assert done.returncode == 0, done.stdout.decode()
