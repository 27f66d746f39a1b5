"""One PPO update from its formulas, in float64: what the scripts' updates are compared with.

The functions take mistakes that people make as arguments, so that a test can say which of them
would give the numbers that it saw.
"""

import numpy as np
import torch


def advantages(rewards, values, next_values, dones, gamma, lam, across=False) -> np.ndarray:
    """A_t = sum over k >= t of (gamma lambda)^(k - t) delta_k, to the episode's or rollout's end.

    Mistake: `across` goes on over the end of an episode.
    """
    rewards, values, next_values = (np.float64(x) for x in (rewards, values, next_values))
    total = np.zeros_like(rewards)
    for i in range(rewards.shape[1]):
        for t in range(len(rewards)):
            for k in range(t, len(rewards)):
                delta = rewards[k, i] + gamma * next_values[k, i] - values[k, i]
                total[t, i] += (gamma * lam) ** (k - t) * delta
                if dones[k, i] and not across:
                    break
    return total


def normalized(advantages, batch, how="minibatch"):
    """(A - mean) / std of the minibatch, std with n - 1.

    Mistakes: `how` is "batch" (its mean and std), "mean" or "std" (one of the two alone), "n" (std
    with n) or "none".
    """
    over = batch if how == "batch" else advantages
    mean = 0 if how in ("std", "none") else over.mean()
    std = 1 if how in ("mean", "none") else over.std(correction=0 if how == "n" else 1) + 1e-8
    return (advantages - mean) / std


def policy_loss(ratio, advantages, epsilon, how="pessimistic"):
    """-mean min(ratio A, clip(ratio) A); mistakes: "unclipped", "clipped", "optimistic", "ratios"
    (the smaller of these, times A), "around 0" (where the ratio is held)."""
    around = 0 if how == "around 0" else 1
    near = ratio.clamp(around - epsilon, around + epsilon)
    plain, clipped = ratio * advantages, near * advantages
    if how == "ratios":
        return -(torch.min(ratio, near) * advantages).mean()
    if how == "optimistic":
        return -torch.max(plain, clipped).mean()
    return -{"unclipped": plain, "clipped": clipped}.get(how, torch.min(plain, clipped)).mean()


def value_loss(new, old, targets, epsilon, how="pessimistic"):
    """mean max((V - R)^2, (V_clip - R)^2) / 2; mistakes: "unclipped", "clipped", "optimistic",
    "means" (the larger of the two)."""
    clipped = old + (new - old).clamp(-epsilon, epsilon)
    plain, clipped = (new - targets) ** 2, (clipped - targets) ** 2
    if how == "optimistic":
        return 0.5 * torch.min(plain, clipped).mean()
    if how == "means":
        return 0.5 * torch.max(plain.mean(), clipped.mean())
    error = {"unclipped": plain, "clipped": clipped}.get(how, torch.max(plain, clipped))
    return 0.5 * error.mean()


def objective(row, batch, args, epsilon, **mistakes) -> dict[str, torch.Tensor]:
    """Loss of a minibatch and its parts.

    `row`: logp, old_logp, entropy, value, old_value, advantage and target of each of its rows;
    `batch`: the advantages of the whole batch. Mistakes: `normalize`, `policy` and `error` as
    above; `entropy` and `half` are factors that belong to the entropy's -1 and the error's 1/2;
    `vf` replaces vf_coef.
    """
    how = mistakes.get("normalize", "minibatch" if args.norm_adv else "none")
    advantage = normalized(row["advantage"], batch, how)
    ratio = (row["logp"] - row["old_logp"]).exp()
    policy = policy_loss(ratio, advantage, epsilon, mistakes.get("policy"))
    how = mistakes.get("error", "pessimistic" if args.clip_vloss else "unclipped")
    value = value_loss(row["value"], row["old_value"], row["target"], epsilon, how)
    entropy = row["entropy"].mean()
    bonus = mistakes.get("entropy", 1) * args.ent_coef * entropy
    error = mistakes.get("half", 1) * mistakes.get("vf", args.vf_coef) * value
    loss = mistakes.get("sign", 1) * policy - bonus + error
    parts = {"policy_loss": policy, "value_loss": value, "entropy": entropy}
    return {"loss": loss, "ratio": ratio, "normalized": advantage, **parts}


def clipped(grads: dict[str, np.ndarray], limit: float, how="global") -> dict[str, np.ndarray]:
    """Gradients, shortened to `limit` together; mistakes: "each" alone, "apart" (actor and
    critic), each "number", "none"."""
    if how == "number":
        return {name: grad.clip(-limit, limit) for name, grad in grads.items()}
    groups = {"each": lambda name: name, "apart": lambda name: name.split(".")[0]}
    group = groups.get(how, lambda name: "all")
    lengths = {
        name: norm({other: grads[other] for other in grads if group(other) == group(name)})
        for name in grads
    }
    if how == "none":
        lengths = dict.fromkeys(grads, 0)
    return {name: grad * min(1, limit / (lengths[name] + 1e-6)) for name, grad in grads.items()}


def norm(grads: dict[str, np.ndarray]) -> float:
    return np.sqrt(sum((np.float64(grad) ** 2).sum() for grad in grads.values()))


def adam(grads: list[np.ndarray], rates: list[float], eps: float, before=False) -> np.ndarray:
    """What Adam has added to a parameter after these gradients, in float64; `before`: epsilon is
    added before the bias is corrected, as TensorFlow does."""
    m = v = total = np.zeros_like(grads[0], np.float64)
    for k, (grad, rate) in enumerate(zip(np.float64(grads), rates, strict=True), 1):
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        root = np.sqrt(1 - 0.999**k)
        total = total - rate * m / (1 - 0.9**k) / (
            np.sqrt(v) / root + eps / (root if before else 1)
        )
    return total
