"""Two rewards that conflict: fronts of RACO and of linear weighting, and the clip and the strength of RACO."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref import lab, losses
from jaxpref.analysis import plots
from jaxpref.lab import tabular

CLAIM = lab.Claim(
    statement="RACO reaches a better Pareto front of conflicting objectives than linear weighting of their losses, and "
    "its clip helps",
    paper="Reward-free Alignment for Conflicting Objectives",
    url="https://arxiv.org/abs/2602.02495",
    reported="Descending a clipped conflict-averse direction of the gradients of DPO losses, one for each objective, "
    "gives better trade-offs between two objectives than descending their weighted sum, on summarisation and safety "
    "with several language models; the clip by the weights speeds convergence with two objectives, and helps.",
    setting="100 prompts of 8 responses with 5 normal features, two linear rewards of unit length whose directions "
    "have a cosine of -0.3. 400 pairs of random responses, labelled by the Bradley-Terry model of each reward. The "
    "policy is a softmax of a tanh scorer of 56 parameters, the reference its start; DPO with beta 0.1, 250 steps of "
    "gradient descent, for 17 weights of the objectives from 0.1 to 0.9. A method's learning rate is that of 1, 3 and "
    "10 whose front is best. Rewards are expectations on 100 other prompts; a front is judged by the area that it "
    "dominates above the rewards of a random response, which are 0.",
    minutes=2,
    notes="RACO moves policies along the front rather than the front: at a weight of 0.2 an objective gets more reward "
    "than by linear weighting, as a larger weight would give it. With 7 weights instead of 17 the front of RACO (c "
    "0.4) dominated 0.019 [0.010, 0.029] more, because its points lie closer to the middle of a sparse front; with 17 "
    "weights the difference is 0.006 [-0.001, 0.013], of 0.97. The clip changes next to nothing at c 0.4, and at c 0.8 "
    "it costs a little. Where the steps are not small compared with the curvature of the losses (learning rate 3, the "
    "best for both), most steps of either method raise the loss of one objective at weights of 0.2 and 0.8. One scorer "
    "of 56 parameters and linear rewards leave few conflicts that a weight does not settle; models with more layers "
    "are not tried here.",
)
PROMPTS, RESPONSES, FEATURES, HIDDEN = 100, 8, 5, 8
PAIRS, STEPS, BETA, COSINE = 400, 250, 0.1, -0.3
MIXES, RATES = np.linspace(0.1, 0.9, 17), (1.0, 3.0, 10.0)
LOW, HIGH = 2, 14  # the mixes of 0.2 and 0.8
C, STRENGTHS = 0.4, (0.4, 0.8)


def score(params, features) -> jax.Array:
    """The scorer of 56 parameters: ``[..., F] -> [...]``."""
    weight, bias, out = params
    return jnp.tanh(features @ weight + bias) @ out


def log_policy(params, features) -> jax.Array:
    """Log-probabilities ``[P, K]``."""
    return jax.nn.log_softmax(score(params, features))


def world(key) -> dict:
    """Prompts to learn from, others with two rewards ``[P, K, 2]`` to judge by, and pairs with both their labels."""
    keys = jax.random.split(key, 6)
    first, other = jax.random.normal(keys[0], (2, FEATURES))
    first /= jnp.linalg.norm(first)
    other -= first * (first @ other)
    second = COSINE * first + jnp.sqrt(1 - COSINE**2) * other / jnp.linalg.norm(other)
    directions = jnp.stack([first, second], axis=1)
    seen, unseen = jax.random.normal(keys[1], (2, PROMPTS, RESPONSES, FEATURES))
    uniform = jnp.full((PROMPTS, RESPONSES), -jnp.log(RESPONSES))
    pairs = tabular.draw_pairs(keys[2], (seen @ directions)[..., 0], uniform, PAIRS)
    chosen, rejected = ((seen @ directions)[pairs.state, side] for side in (pairs.chosen, pairs.rejected))
    agrees = jax.random.uniform(keys[3], (PAIRS,)) < jax.nn.sigmoid(chosen - rejected)[:, 1]
    prefers = jnp.stack([jnp.ones(PAIRS), jnp.where(agrees, 1.0, -1.0)], axis=1)
    return {"seen": seen, "unseen": unseen, "rewards": unseen @ directions, "pairs": pairs, "prefers": prefers}


def initial(key):
    """The scorer starts near zero, so that the policy starts near its uniform reference."""
    keys = jax.random.split(key)
    return (
        jax.random.normal(keys[0], (FEATURES, HIDDEN)) / jnp.sqrt(FEATURES),
        jnp.zeros(HIDDEN),
        0.1 * jax.random.normal(keys[1], (HIDDEN,)),
    )


def learn(key, mix, c, rate, *, clip: bool) -> dict:
    """Trains one policy by gradient descent along RACO's direction (c = 0: linear weighting)."""
    data, start = world(jax.random.fold_in(key, 0)), initial(jax.random.fold_in(key, 1))
    weights = jnp.stack([mix, 1 - mix])
    reference = log_policy(start, data["seen"])

    def objectives(params):
        rows = tabular.arrays(log_policy(params, data["seen"]), reference, data["pairs"])
        return jnp.mean(losses.raco_loss(*rows, data["prefers"], beta=BETA)[1].losses, axis=0)

    def step(params, _):
        gradients = jax.jacrev(objectives)(params)
        direction, _ = losses.raco_direction(gradients, weights, c=c, clip=clip)
        progress = sum(jnp.tensordot(g, d, d.ndim) for g, d in zip(gradients, direction, strict=True))
        return jax.tree.map(lambda p, d: p - rate * d, params, direction), jnp.any(progress < 0)

    params, conflicts = jax.lax.scan(step, start, length=STEPS)
    policy = log_policy(params, data["unseen"])
    return {
        "rewards": jnp.stack([tabular.expected_reward(policy, data["rewards"][..., one]) for one in (0, 1)]),
        "losses": objectives(params),
        "conflicting steps": jnp.mean(conflicts),
    }


def hypervolume(points: np.ndarray) -> float:
    """Area that the points ``[N, 2]`` dominate above the rewards of the reference, which are 0."""
    area, height = 0.0, 0.0
    for first, second in sorted(np.maximum(points, 0).tolist(), reverse=True):
        area, height = area + first * max(second - height, 0.0), max(height, second)
    return area


def fronts(keys, cs, rates, *, clip: bool) -> dict:
    """Every strength of RACO at its best learning rate: c -> measures ``[mixes, seeds, ...]`` and hypervolumes."""
    one = functools.partial(learn, clip=clip)
    for axis in (0, 1, 3, 2):
        one = jax.vmap(one, [0 if place == axis else None for place in range(4)])
    runs = jax.tree.map(np.asarray, jax.jit(one)(keys, jnp.asarray(MIXES), jnp.array(cs), jnp.array(rates)))
    found = {}
    for number, c in enumerate(cs):
        rows = [{name: value[number, rate] for name, value in runs.items()} for rate in range(len(rates))]
        areas = [[hypervolume(row["rewards"][:, seed]) for seed in range(len(keys))] for row in rows]
        best = int(np.argmax(np.mean(areas, axis=1)))
        found[c] = {**rows[best], "hypervolume": areas[best], "rate": rates[best]}
    return found


def measured(row: dict) -> dict:
    """Numbers of a front, one a seed; skewed are the mixes of 0.2 and 0.8."""
    skewed = [LOW, HIGH]
    rewards = row["rewards"][skewed]
    shares = np.stack([MIXES, 1 - MIXES], axis=1)[skewed][:, None]
    return {
        "hypervolume of the front": row["hypervolume"],
        "lesser objective's reward (weight 0.2)": np.mean([rewards[0, :, 0], rewards[1, :, 1]], axis=0),
        "weighted reward (0.2, 0.8)": np.mean(np.sum(shares * rewards, axis=-1), axis=0),
        "conflicting steps": np.mean(row["conflicting steps"][skewed], axis=0),
        "learning rate": np.full(len(row["hypervolume"]), row["rate"]),
    }


def run(quick: bool) -> lab.Outcome:
    """Strengths with the clip, then without; mixes, rates and seeds in one program each."""
    seeds, rates = (3, RATES[1:2]) if quick else (8, RATES)
    keys = jax.random.split(jax.random.key(0), seeds)
    clipped = fronts(keys, (0.0, C) if quick else (0.0, *STRENGTHS), rates, clip=True)
    rows = {"linear weighting" if c == 0 else f"RACO, c = {c:g}": row for c, row in clipped.items()}
    if not quick:
        rows |= {f"c = {c:g} without the clip": row for c, row in fronts(keys, STRENGTHS, rates, clip=False).items()}
    found = {name: measured(row) for name, row in rows.items()}
    return lab.Outcome(found, checks(found, quick), figure(rows))


def checks(found: dict, quick: bool) -> list[lab.Check]:
    """RACO at the paper's strength against linear weighting, and against itself without the clip."""
    linear, raco = found["linear weighting"], found[f"RACO, c = {C:g}"]
    front, lesser, conflicts, weighted = list(raco)[0], list(raco)[1], list(raco)[3], list(raco)[2]
    made = [
        lab.above(
            "at weight 0.2 an objective gets more reward by RACO than by linear weighting", raco[lesser], linear[lesser]
        ),
    ]
    if quick:
        return made
    bare = found[f"c = {C:g} without the clip"]
    return [
        *made,
        lab.above("the front of RACO dominates more than that of linear weighting", raco[front], linear[front]),
        lab.below("fewer steps of RACO raise the loss of an objective", raco[conflicts], linear[conflicts]),
        lab.above("the front with the clip dominates more than without", raco[front], bare[front]),
        lab.above("the weighted reward with the clip is above that without", raco[weighted], bare[weighted]),
    ]


def figure(rows: dict):
    """Fronts, mean over seeds."""
    return plots.paths(
        {name: np.mean(row["rewards"], axis=1) for name, row in rows.items()},
        title="Two conflicting rewards on unseen prompts",
        xlabel="expected reward 1",
        ylabel="expected reward 2",
    )
