"""Exercises: what is blank fails, the original passes, and a known mistake is named."""

import ast
import re
import shutil

import exercise
import numpy as np
import pytest
import symptom
from harness import ROOT, SCRIPTS, details, load
from test_removals import REGISTRY, find
from torch.utils.tensorboard import SummaryWriter

CASES = [(d["scripts"][0], name) for name, d in REGISTRY.items() if d["scripts"][0] in SCRIPTS]


@pytest.fixture(autouse=True)
def own_exercises(tmp_path, monkeypatch):
    monkeypatch.setattr(exercise, "FOLDER", tmp_path / "exercises")


@pytest.mark.parametrize(("script", "name"), CASES, indirect=["script"])
def test_a_blank_fails(script, name, monkeypatch):
    """The code of every site is gone, all else stays, and the detail's test notices."""
    text, gone = exercise.blanked((ROOT / script).read_text(), name)
    sites = details.markers(text)[name]
    assert [s["title"] for s in sites] == [
        s["title"] for s in details.markers((ROOT / script).read_text())[name]
    ]
    assert gone > 0 and text.count(f'raise NotImplementedError("{name}")') >= len(sites)
    with open("graded.py", "w") as file:
        file.write(text)
    monkeypatch.setenv("GRADED", "graded.py")
    with pytest.raises((NotImplementedError, AssertionError, SystemExit)):
        find(REGISTRY[name]["test"])(load(script))


def test_a_reader_who_gets_it_wrong_and_then_right(capsys):
    exercise.write("core-09", again=False)
    path = exercise.path_of("core-09")
    said = capsys.readouterr().out
    assert "(5 in the original)" in said and "About 10 minutes" in said
    blank = path.read_text()
    assert "# To produce: value_loss." in blank and "mb_values" in blank
    with pytest.raises(SystemExit, match="--again"):  # what was written is not lost
        exercise.write("core-09", again=False)
    assert exercise.check("core-09") == 1
    said = capsys.readouterr().out
    assert "NotImplementedError" in said and " of your file" in said
    original = (ROOT / "ppo.py").read_text()
    path.write_text(original.replace("0.5 * error.mean()", "error.mean()"))
    assert exercise.check("core-09") == 1
    assert "did you forget the 1/2?" in capsys.readouterr().out
    shutil.copy(ROOT / "ppo.py", path)
    assert exercise.check("core-09") == 0
    assert "core-09 is right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "find", "replace", "said"),
    [
        # An assertion without a message is told with what the test holds.
        ("aux-03", "is not None and (ratio", "is None or (ratio", "no epoch is left out"),
        ("core-05", "rewards + gamma", "np.flip(rewards, axis=2) + gamma", "AxisError"),
    ],
)
def test_other_failures_are_told(name, find, replace, said, capsys):
    exercise.write(name, again=False)
    source = (ROOT / "ppo.py").read_text()
    assert source.count(find) == 1
    exercise.path_of(name).write_text(source.replace(find, replace))
    assert exercise.check(name) == 1
    assert said in capsys.readouterr().out


def test_all_at_once(capsys):
    exercise.write("all", again=False)
    text = exercise.path_of("all").read_text()
    ast.parse(text)
    assert all(f'raise NotImplementedError("{name}")' in text for name in exercise.DRILL)
    capsys.readouterr()
    exercise.hint("all")
    assert len(capsys.readouterr().out) > 1000
    original = (ROOT / "ppo.py").read_text()
    wrong = original.replace("0.5 * error.mean()", "error.mean()")
    for name in exercise.DRILL:  # what is wrong elsewhere does not count
        alone = exercise.transplanted(name, wrong, original)
        expected = wrong if name == "core-09" else original
        assert ast.dump(ast.parse(alone)) == ast.dump(ast.parse(expected)), name
    with pytest.raises(SystemExit, match="leave these lines"):
        exercise.transplanted("core-09", wrong.replace("[core-09]", "[core-9]"), original)


def test_what_a_block_is_given():
    block = "a = b + f(args.c)\nd[a] = [x for x in e]\nself.g, h = a, d"
    given, produced = exercise.names_in(ast.parse(block).body, {"f"})
    assert given == ["b", "args.c", "e", "d"] and produced == ["a", "d[a]", "self.g", "h"]
    _, produced = exercise.names_in(ast.parse("a[b if c else d] = 0").body, set())
    assert produced == ["a"]  # how it is indexed is the answer


def test_a_planted_bug(capsys):
    for name in exercise.BUGS:
        exercise.write(name, again=False)
        assert exercise.check(name) == 1
        shutil.copy(ROOT / "ppo.py", exercise.path_of(name))
        assert exercise.check(name) == 0
    assert "docs/symptoms.md" in capsys.readouterr().out


def test_what_is_worked_by_hand():
    """The page's tables and solutions, against compute_gae and the clipped objective."""
    page = (ROOT / "docs" / "exercises.md").read_text()
    found = re.findall(r"^\| (\d) \| (\d) \| (\d) \| (\d) \| (no|yes) \|$", page, re.MULTILINE)
    _, rewards, values, following, ends = zip(*found)
    rewards, values, following = np.array([rewards, values, following], float)[..., None]
    dones = np.array(ends)[:, None] == "yes"
    gae = load("ppo.py").compute_gae
    advantages = gae(rewards, values, np.where(dones, 0, following), dones, 0.5, 0.5)
    for t, number in enumerate(advantages[:, 0]):
        assert re.search(rf"advantages\[{t}\] = (?:[^=.]* = )?{number:g}\b", page)
    (told,) = re.findall(r"returns = advantages \+ values = (.*)\.\n", page)
    assert [float(x) for x in told.split(", ")] == (advantages + values)[:, 0].tolist()
    rows = re.findall(r"^\| ([a-d]) \| ln (\S+) \| ln (\S+) \| (\S+) \|$", page, re.MULTILINE)
    total = 0.0
    for name, old, new, advantage in rows:
        ratio, advantage = float(new) / float(old), float(advantage)
        first, second = ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage
        worse = min(first, second)
        total += worse
        assert f"{name}: min({first:g}, {second:g}) = {worse:g}," in page
    assert f"their mean, {total / 4:g}, and the loss {-total / 4:g}." in page


def test_a_log_as_a_row_of_the_symptoms():
    flags = ["--total-timesteps", "1024", "--eval-episodes", "0"]
    head, _, row = symptom.main(load("ppo.py").main(flags)["folder"]).splitlines()
    found = dict(zip(head.split(" | "), row.split(" | ")))
    assert 0.6 < float(found["entropy"]) < 0.7 and float(found["clip fraction"]) < 0.5


def test_no_log_is_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match="give the folder of a run"):
        symptom.main(str(tmp_path))
    SummaryWriter(tmp_path).close()  # a run that a check stopped in its first iteration
    with pytest.raises(SystemExit, match="stopped before its first iteration"):
        symptom.along(str(tmp_path), 1000)
