"""The course: ten files, each one idea further, the last of which is the lesson of ppo.py."""

import difflib
import io
import re
import runpy
import tokenize

import pytest
import torch
from harness import ROOT, load

STEPS = sorted((ROOT / "docs" / "course").glob("*.py"))
NAMES = [step.stem for step in STEPS]
PPO = (ROOT / "ppo.py").read_text()
LESSON = PPO.split("# ------------------------ Running it")[0]

# What running needs and the lesson does without: files, films, evaluation, going on after a stop.
RUNNING = "fcntl|json|sys|datetime|replace|SCRIPT|eval|video|checkpoint|resume|start|save|purge"
CHECKS = "_add_info|SyncVectorEnv|return envs|fail|not np.isfinite|first_ratio|mode|argmax|flush"


def run(step, monkeypatch, *flags):
    monkeypatch.setattr("sys.argv", [str(step), *flags])
    return runpy.run_path(str(step), run_name="__main__")


def code(source: str) -> list[str]:
    """Lines without comments, docstrings and what is blank."""
    lines, previous = source.splitlines(), tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        first, last = token.start[0] - 1, token.end[0]
        if token.type == tokenize.COMMENT:
            lines[first] = lines[first][: token.start[1]]
        elif token.type == tokenize.STRING and previous in (tokenize.NEWLINE, tokenize.INDENT):
            lines[first:last] = [""] * (last - first)
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            previous = token.type
    return [line.rstrip() for line in lines if line.strip()]


def changed(old: str, new: str) -> int:
    """Lines that are new or gone; one that replaces another counts once."""
    match = difflib.SequenceMatcher(None, old.splitlines(), new.splitlines(), autojunk=False)
    return sum(max(b - a, d - c) for tag, a, b, c, d in match.get_opcodes() if tag != "equal")


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_a_step_runs(step, monkeypatch, capsys):
    """From its first step to its first words, which are those of a policy at the start."""
    run(step, monkeypatch, "--total-timesteps", "10500")
    said = capsys.readouterr()
    pattern = r"return (\S+)\]" if step == STEPS[-1] else r"^step 10\d\d\d: return ([\d.]+)"
    (*_, mean) = re.findall(pattern, said.err if step == STEPS[-1] else said.out, re.MULTILINE)
    low, high = (9, 30) if step == STEPS[0] else (9, 200)
    assert low < float(mean) < high


def test_steps_are_small():
    texts = [step.read_text() for step in STEPS]
    for name, old, new in zip(NAMES[1:], texts, texts[1:]):
        assert changed(old, new) <= 60, f"{name}: {changed(old, new)} lines changed"
    assert max(len(text.splitlines()) for text in texts) <= len(LESSON.splitlines())
    assert max(len(code(text)) for text in texts) <= len(code(LESSON))


def test_the_last_step_is_the_lesson_of_ppo():
    """Line by line: what one has and the other has not is about running it."""
    theirs, ours = code(LESSON), code(STEPS[-1].read_text())
    match = difflib.SequenceMatcher(None, theirs, ours, autojunk=False)
    for tag, a, b, c, d in match.get_opcodes():
        if tag == "equal":
            continue
        for line in theirs[a:b]:
            assert re.search(f"{RUNNING}|{CHECKS}", line), line
        if tag == "replace":  # the same line without what is about running
            assert d - c <= b - a, ours[c:d]
        for line in ours[c:d]:
            alike = difflib.get_close_matches(line, theirs[a:b], n=1, cutoff=0.5)
            alike = alike or any(longer.startswith(line.rstrip(")")) for longer in theirs[a:b])
            assert alike or line.startswith(('if __name__ == "__main__"', "    train(")), line


def test_the_last_step_trains_the_weights_of_ppo(monkeypatch):
    """Bit for bit, so that what is measured of one holds for the other."""
    found = []
    forward = torch.optim.Adam.step

    def step(optimizer, *args):
        result = forward(optimizer, *args)
        found.append([p.detach().clone() for p in optimizer.param_groups[0]["params"]])
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    flags = ["--total-timesteps", "2048", "--num-steps", "64", "--seed", "3"]
    run(STEPS[-1], monkeypatch, *flags)
    half = len(found)
    load("ppo.py").main([*flags, "--eval-episodes", "0"])
    assert half == len(found) - half == 8 * 16
    for ours, theirs in zip(found[:half], found[half:]):
        assert all(map(torch.equal, ours, theirs))


def test_reinforce_is_a_weighted_cross_entropy():
    """-log pi(a) is the cross-entropy of logits and actions: what step 2's page says."""
    module = runpy.run_path(str(STEPS[2]))
    logits, actions = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    ours = -module["Categorical"](logits).log_prob(actions)
    theirs = torch.nn.functional.cross_entropy(logits, actions, reduction="none")
    torch.testing.assert_close(ours, theirs)


def test_names_are_those_of_ppo():
    """What a step defines keeps its name: nothing is unlearned."""
    known = set(re.findall(r"\w+", LESSON)) | {"env", "done", "before", "later", "reward", "said"}
    for step in STEPS:
        new = set(re.findall(r"^ *(\w+)(?:, \w+)* (?:=|\+=) ", step.read_text(), re.MULTILINE))
        assert new <= known, f"{step.name}: {new - known}"
