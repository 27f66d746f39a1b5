"""The static site: every link leads somewhere, nothing needs a network, and a browser shows it."""

import fcntl
import json
import re
import shutil
import subprocess
import tempfile
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import annotate
import book
import gymnasium as gym
import numpy as np
import pytest
import torch
from details import ROOT, SCRIPTS, markers
from harness import load

BROWSER = next(filter(shutil.which, ["chromium", "chromium-browser", "google-chrome"]), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
WIDE, PHONE = 1500, 420


@pytest.fixture(scope="session")
def site(tmp_path_factory, worker_id) -> Path:
    """The book, written once, by whichever of pytest's processes needs it first."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder if worker_id == "master" else folder.parent  # which all of them share
    with (folder / "book.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "book").exists():
            book.main(folder / "unfinished")
            (folder / "unfinished").rename(folder / "book")
    return folder / "book" / "html"


class Page(HTMLParser):
    """The ids of a page, where its links lead, and what it loads by itself."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("prev", "next", "canonical"):
            self.loads.append(found["href"])
        elif found.get("src"):
            self.loads.append(found["src"])


def test_links_lead_somewhere_and_nothing_comes_from_the_network(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > len(book.pages()) + len(SCRIPTS)
    for path, page in pages.items():
        for target in page.loads:
            assert not re.match(r"(https?:)?//", target), f"{path.name} loads {target}"
            assert (path.parent / unquote(target)).exists(), f"{path.name} loads {target}"
        for target in page.links:
            if re.match(r"https?:|mailto:", target):
                continue
            name, _, anchor = unquote(target).partition("#")
            there = (path.parent / name).resolve() if name else path
            assert there.exists(), f"{path.name} links to {target}"
            if anchor and not anchor.startswith("__"):
                assert anchor in pages[there].ids, f"{path.name} links to {target}"


def test_every_script_and_every_page_is_in_the_navigation(site):
    links = set(Page(site / "index.html").links)
    names = set(book.pages()) - {"index"} | {f"source/{s[:-3]}" for s in SCRIPTS}
    assert not {f"{name}.html" for name in names} - {link.removeprefix("./") for link in links}


def test_formulas(site):
    """Every formula of a page is there as MathML, with its LaTeX nowhere left."""
    for name, (_, text) in book.pages().items():
        plain = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        formulas = len(annotate.MATH.findall(plain))
        written = (site / f"{name}.html").read_text()
        assert written.count("<math") == formulas, name
        assert "arithmatex" not in written and r"\(" not in unescape(written.split("</main>")[0])
    index = json.loads((site / "search.json").read_text())["items"]
    texts = " ".join(entry["text"] for entry in index)
    assert r"\(" not in texts and r"\frac" not in texts and "V(s_t)" in texts


def test_headings_carry_the_ids_that_links_lead_to(site):
    """The contents list of a page highlights what it links to."""
    written = (site / "ppo.html").read_text()
    assert '<h3 id="core-07">' in written and 'href="#core-07"' in written
    assert written.count("<details") == written.count("<summary>") >= 19


def test_excerpts_count_lines_as_their_script_does(site):
    text = (site / "ppo.html").read_text()
    linked = re.findall(r">ppo\.py:(\d+)-\d+</a></p>", text)
    block = r'>ppo\.py:(\d+)-\d+</a></p>\s*<div[^>]*>.*?<span class="normal">\s*(\d+)<'
    shown = re.findall(block, text, re.DOTALL)
    assert len(shown) == len(linked) == len(set(linked)) >= 20
    assert all(said == first for said, first in shown)


def look(page: Path, script: str, width: int):
    """What a script returns, as JSON, that runs in a page once it is loaded."""
    code = f"(async () => {{ {script} }})().then(it => document.title = JSON.stringify(it))"
    probed = page.read_text().replace("</html>", f"<script>{code}</script></html>")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={width},1000", "--virtual-time-budget=10000", "--dump-dom"]
    with tempfile.NamedTemporaryFile("w", dir=page.parent, suffix=".htm") as probe:
        probe.write(probed)
        probe.flush()
        command.append(Path(probe.name).as_uri())
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return json.loads(unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_block_of_the_lesson_is_explained(script):
    """By a marker, or by docs/site/blocks.toml; each entry of that fits somewhere."""
    source = (ROOT / script).read_text()
    lesson = source[: source.index("# ------------------------ Running it")].splitlines()
    known = set(annotate.explained(source))
    for found in markers(source).values():
        for site in found:
            known |= set(range(site["first"], site["last"] + 1))
    begin = next(n for n, line in enumerate(lesson, 1) if line.startswith("import fcntl"))
    inside = 0  # the indentation that an explained definition governs
    for number, line in list(enumerate(lesson, 1))[begin - 1 :]:
        indent = len(line) - len(line.lstrip())
        inside = inside if (line.strip() and indent >= inside) or not line.strip() else 0
        begins = line.strip() and not lesson[number - 2].strip()
        if begins and not inside and not re.match(r"# -+ |import gym|import ale", line):
            same = line.strip().startswith("@property")  # said once
            same |= line.strip().startswith("# ---") and number + 1 in known
            assert number in known or same, f"{script}:{number}: {line}"
        if number in known and line.startswith("class "):
            inside = indent + 4


def test_explanations_of_blocks_are_used():
    texts = [(ROOT / script).read_text() for script in SCRIPTS]
    used = {said for text in texts for said in annotate.explained(text).values()}
    assert {block["says"] for block in annotate.blocks()} == used


@needs_browser
@pytest.mark.parametrize("script", SCRIPTS)
def test_explanations_stand_beside_their_lines(site, script):
    """In the shell of the site: wide, beside lines that have no gaps, and never one over another;
    on a phone above them."""
    rows = """await new Promise(done => setTimeout(done, 500));
    const notes = [...document.querySelectorAll(".note")].map(note => {
        const line = note.closest(".row").querySelector(".line");
        const parts = [note, line, note.closest(".row").querySelector(":scope > pre")];
        const [a, b, column] = parts.map(part => part.getBoundingClientRect());
        return {name: note.dataset.detail, line: +line.id.slice(1), text: line.innerText,
                box: [a.left, a.top, a.bottom], code: [column.right, b.top]};
    });
    const tops = [...document.querySelectorAll(".line")].map(e => e.getBoundingClientRect().top);
    const where = [...document.querySelectorAll(".where .here")].map(e => e.innerText);
    return {notes, tops, where, nav: document.querySelectorAll(".md-nav__link").length}"""
    page = site / "source" / f"{Path(script).stem}.html"
    source = (ROOT / script).read_text()
    sites = {(name, s["first"]) for name, found in markers(source).items() for s in found}
    for width in (WIDE, PHONE):
        found = look(page, rows, width)
        notes, tops = found["notes"], found["tops"]
        assert {(n["name"], n["line"]) for n in notes if "name" in n} == sites
        assert found["where"] == ["Settings"] and found["nav"] > 15
        gaps = np.diff(tops)
        free = 0
        for note in notes:
            assert source.splitlines()[note["line"] - 1].strip() in note["text"]
            (left, top, bottom), (right, line) = note["box"], note["code"]
            if width == WIDE:
                assert left >= right and gaps.max() - gaps.min() < 1
                assert top >= free and line - 5 <= top <= max(free, line) + 30
            else:
                assert left < 30 and bottom <= line
            free = bottom


@needs_browser
def test_a_phone_shows_every_page_without_scrolling_sideways(site):
    for page in sorted(site.glob("*.html")):
        if page.name != "404.html":
            wide = "return [document.documentElement.scrollWidth, innerWidth]"
            width, room = look(page, wide, PHONE)
            assert width <= room <= PHONE + 80, page.name


@needs_browser
def test_no_table_is_higher_than_a_screen_and_a_half(site):
    heights = """return [...document.querySelectorAll("table:not(.highlighttable)")]
        .map(table => table.offsetHeight)"""
    pages = [page for page in site.glob("*.html") if page.read_text().count("<tr") > 15]
    assert len(pages) > 5
    for page in pages:  # the others have only short ones
        assert max(look(page, heights, WIDE), default=0) < 1.5 * 1000, page.name


@needs_browser
def test_formulas_are_drawn(site):
    boxes = """return [...document.querySelectorAll("math")].map(formula => {
        const box = formula.getBoundingClientRect();
        return [box.width, box.height, formula.textContent.length];
    })"""
    drawn = look(site / "ppo.html", boxes, WIDE)
    assert len(drawn) > 20
    assert all(width > 3 and 5 < height < 200 for width, height, _ in drawn)


@needs_browser
def test_the_search_finds_from_disk(site):
    """No server: the page is opened as a file."""
    search = """const wait = ms => new Promise(done => setTimeout(done, ms));
        await wait(1000);
        document.querySelector(".md-search__button, [data-md-component=search] button").click();
        await wait(1000);
        const roots = [document, ...[...document.querySelectorAll("*")].map(e => e.shadowRoot)];
        const fields = roots.filter(Boolean).flatMap(r => [...r.querySelectorAll("input")]);
        const field = fields.find(f => f.placeholder || f.type == "search" || f.type == "text");
        const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set;
        set.call(field, "advantage normalization");
        field.dispatchEvent(new Event("input", {bubbles: true, composed: true}));
        await wait(2000);
        return field.getRootNode().textContent"""
    found = look(site / "index.html", search, WIDE)
    assert "core-07" in found and "Loading search" not in found


class Count(gym.Env):
    """Observations (episode, step); episodes of a length."""

    observation_space = gym.spaces.Box(0, 99, (2,), np.int64)
    action_space = gym.spaces.Discrete(2)
    episode = -1

    def __init__(self, length: int):
        self.length = length

    def reset(self, **kwargs):
        self.episode, self.step_ = self.episode + 1, 0
        return np.array([self.episode, 0]), {}

    def step(self, action):
        self.step_ += 1
        return np.array([self.episode, self.step_]), 1.0, self.step_ == self.length, False, {}


@needs_browser
def test_figures_to_play_with_compute_what_the_scripts_do(site):
    """In a browser, from disk: the clip's objective and gradient, GAE, and Gymnasium's resets."""
    rng = np.random.default_rng(1)
    rows = [[a, e, r] for a in (-2, 0.5) for e in (0.1, 0.3) for r in (0.3, 0.95, 1, 1.05, 1.9)]
    rewards, values, following = rng.normal(size=(3, 7)).round(3).tolist()
    terminated, truncated = [t == 2 for t in range(7)], [t == 4 for t in range(7)]
    lists = [rewards, values, following, terminated, truncated, 0.9, 0.8]
    modes = {"next step": "NEXT_STEP", "same step": "SAME_STEP", "none": "DISABLED"}
    found = look(
        site / "course.html",
        f"""return {{clip: {json.dumps(rows)}.map(row => PPO.clip(...row)),
        gae: PPO.gae(...{json.dumps(lists)}),
        autoreset: {json.dumps(list(modes))}.map(mode => PPO.autoreset(mode, 3, 9)),
        shown: [...document.querySelectorAll(".play")].map(figure => figure.dataset.play),
        first: document.querySelector("[data-play=clip] [role=status]").innerText}}""",
        WIDE,
    )
    for (advantage, epsilon, ratio), ours in zip(rows, found["clip"]):
        ratio = torch.tensor(float(ratio), requires_grad=True)
        clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
        objective = torch.min(ratio * advantage, clipped * advantage)
        objective.backward()
        assert ours == pytest.approx({"objective": objective.item(), "gradient": ratio.grad.item()})
    ppo = load("ppo.py")
    columns = [np.array(x)[:, None] for x in lists[:5]]
    columns[2] = np.where(columns[3], 0, columns[2])
    dones = columns.pop() | columns.pop()
    advantages = ppo.compute_gae(*columns, dones, 0.9, 0.8)[:, 0]
    assert found["gae"]["advantages"] == pytest.approx(advantages.tolist())
    for mode, ours in zip(modes.values(), found["autoreset"]):
        mode = gym.vector.AutoresetMode[mode]
        envs = gym.vector.SyncVectorEnv([lambda: Count(3)], autoreset_mode=mode)
        obs, _ = envs.reset()
        for row in ours:
            assert row["obs"] == obs[0].tolist()
            before = obs
            obs, reward, over, _, _ = envs.step(np.array([0]))
            assert row["next"] == obs[0].tolist() and row["reward"] == reward[0]
            assert row["done"] == over[0]
            true = row["next"] == [before[0, 0], before[0, 1] + 1]
            assert bool(row["wrong"]) == (not true)
            if over[0] and mode == gym.vector.AutoresetMode.DISABLED:
                obs, _ = envs.reset(options={"reset_mask": over})
    assert found["shown"] == ["gae", "clip"]
    assert found["first"].startswith("objective 1.2, gradient 0")
