"""A test that fails says which mistake it most likely saw: usual ones, made in ppo.py."""

import pytest
import test_core
from harness import ROOT, load

# Where in ppo.py, what is written there, and what the test of which detail says of it.
MISTAKES = [
    ("core-03", "eps=1e-5, fused", "eps=1e-8, fused", "epsilon were [1e-08]"),
    ("core-05", "~dones[t] * gae", "gae", "goes on over the dones"),
    ("core-05", "deltas[t] + gamma * gae_lambda", "deltas[t] + gamma", "lambda is missing"),
    (
        "core-05",
        "rewards + gamma * next_values",
        "rewards + gamma * next_values * ~dones",
        "dones cut the delta",
    ),
    ("core-05", "gamma * gae_lambda * ~dones", "gae_lambda * ~dones", "gamma is missing"),
    ("core-05", "~dones[t] * gae", "~np.roll(dones, -1, 0)[t] * gae", "one row off"),
    ("core-05", "in reversed(range(len(deltas)))", "in range(len(deltas))", "runs forwards"),
    ("core-07", " - mb_advantages.mean()", " - advantages.mean().item()", "nor a known mistake"),
    ("core-07", ".std() + 1e-8", ".std(correction=0) + 1e-8", "with n, not with n - 1"),
    ("core-07", "mb_advantages / (mb_advantages.std() + 1e-8)", "mb_advantages", "nothing divided"),
    ("core-08", "= -torch.min(ratio", "= -torch.max(ratio", "the larger of the two terms"),
    ("core-08", "= -torch.min(ratio", "= torch.min(ratio", "wrong sign"),
    (
        "core-08",
        "clamp(1 - clip_coef, 1 + clip_coef)",
        "clamp(1 - args.clip_coef, 1 + args.clip_coef)",
        "is not annealed",
    ),
    (
        "core-08",
        "torch.min(ratio * mb_advantages, clipped * mb_advantages)",
        "(clipped * mb_advantages)",
        "only the clipped term",
    ),
    (
        "core-08",
        "torch.min(ratio * mb_advantages, clipped * mb_advantages)",
        "(torch.min(ratio, clipped) * mb_advantages)",
        "the smaller ratio is taken",
    ),
    ("core-08", "clamp(1 - clip_coef, 1 + clip_coef)", "clamp(-clip_coef, clip_coef)", "near 1"),
    (
        "core-09",
        "error = torch.max(error, (near - mb_returns) ** 2)",
        "error = torch.max(error.mean(), ((near - mb_returns) ** 2).mean())",
        "of each row",
    ),
    (
        "core-09",
        "near = mb_values + (new_values - mb_values)",
        "near = mb_returns + (new_values - mb_returns)",
        "near the old one",
    ),
    ("core-09", "0.5 * error.mean()", "error.mean()", "did you forget the 1/2?"),
    (
        "core-09",
        "torch.max(error, (near",
        "torch.min(error, (near",
        "the smaller of the two errors",
    ),
    ("core-10", "policy_loss - args.ent_coef", "policy_loss + args.ent_coef", "the wrong sign"),
    ("core-10", "+ args.vf_coef * value_loss", "+ value_loss", "not multiplied by vf_coef"),
    (
        "core-11",
        "nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)",
        "torch.stack([nn.utils.clip_grad_norm_(p, args.max_grad_norm) for p in agent.parameters()])"
        ".norm()",
        "each parameter is clipped alone",
    ),
    (
        "core-11",
        "nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)",
        "torch.stack([nn.utils.clip_grad_norm_(half.parameters(), args.max_grad_norm)"
        " for half in (agent.actor, agent.critic)]).norm()",
        "clipped apart",
    ),
    (
        "core-02",
        "gain)\n    nn.init.zeros_(layer.bias)\n    return layer",
        "gain)",
        "return the layer",
    ),
    (
        "aux-03",
        "(ratio - 1 - log_ratio).mean() > args",
        "-log_ratio.mean() > args",
        "Is it k3",
    ),
    ("extra-01", "[terminated if args.bootstrap", "[truncated if args.bootstrap", "must be 0"),
]


@pytest.mark.parametrize(("name", "find", "replace", "hint"), MISTAKES)
def test_what_a_failure_says(monkeypatch, name, find, replace, hint):
    source = (ROOT / "ppo.py").read_text()
    assert source.count(find) == 1
    with open("graded.py", "w") as file:
        file.write(source.replace(find, replace))
    monkeypatch.setenv("GRADED", "graded.py")
    tests = [test for key, test in vars(test_core).items() if name.replace("-", "_") in key]
    (test,) = tests
    with pytest.raises(AssertionError) as failure:
        test(load("ppo.py"))
    assert hint in str(failure.value)
