"""Token distributions trained on pairs of which annotators like the longer response more than its quality deserves."""

import functools

import jax
import jax.numpy as jnp

from jaxpref import lab, losses
from jaxpref.analysis import plots
from jaxpref.lab import tabular

CLAIM = lab.Claim(
    statement="DPO lengthens responses far beyond what annotators saw; R-DPO, LN-DPO and SimPO reach its quality with "
    "shorter ones",
    paper="Disentangling Length from Quality in Direct Preference Optimization",
    url="https://arxiv.org/abs/2403.19159",
    reported="DPO writes responses much longer than either response of the data, and charging for length in the loss "
    "(R-DPO) keeps the length with little or no loss of quality, up to 20 points of win rate at equal length. SimPO "
    "(https://arxiv.org/abs/2405.14734) and LN-DPO (in The Hitchhiker's Guide to Human Alignment with *PO, "
    "https://arxiv.org/abs/2407.15229) divide by length and report shorter responses than DPO's at equal quality.",
    setting="4 prompts; a response is drawn token by token, from 8 tokens and the end, until the end or 40 tokens. "
    "The policy is a table with one distribution for each prompt, so that log-probabilities add up over tokens; the "
    "reference ends with probability 0.12 (7.3 tokens on average). The true quality is the mean worth of the tokens "
    "(standard deviation 4), whatever their number. 2000 pairs from the reference, Bradley-Terry labels of quality + "
    "c times length with c = 0.1 (biased) or 0; 300 steps of Adam at 0.05. R-DPO has alpha = c, SimPO a target margin "
    "of half its beta. Every method is run at five betas (DPO and R-DPO 0.1 to 2, LN-DPO and SimPO 1 to 20). Quality "
    "is that above the reference's; the quality with a number of tokens is the best of all betas and steps whose "
    "policy writes no more than that. Quality and length of a policy are exact.",
    minutes=1.5,
    notes="DPO lengthens without any bias of the labels too: a sum of log-ratios grows with the number of tokens, so "
    "that long pairs teach most, and at beta 0.5 it writes 32 tokens where the reference writes 7. Charging for "
    "length as much as the labels reward it (R-DPO) brings this back to about what DPO does without the bias, not to "
    "the reference's length: at small betas it still fills all 40 tokens. Dividing by length (LN-DPO, SimPO) turns "
    "the same pairs into much more quality; of SimPO, which no reference holds, this shows from 14 tokens on, with 10 "
    "the interval includes 0.",
)
PROMPTS, TOKENS, LONGEST, PAIRS, STEPS, WORTH, ENDS, BIAS = 4, 8, 40, 2000, 300, 4.0, 0.12, 0.1
SUMS, MEANS = (0.1, 0.2, 0.5, 1.0, 2.0), (1.0, 2.0, 5.0, 10.0, 20.0)
BETAS = {"DPO": SUMS, "R-DPO": SUMS, "LN-DPO": MEANS, "SimPO": MEANS}
QUICK = {"DPO": (0.2, 1.0), "R-DPO": (0.2, 1.0), "LN-DPO": (5.0, 10.0)}
LIMITS = (8, 10, 14, 20, 28)


def draw(key, reference: jax.Array, prompts: jax.Array) -> jax.Array:
    """Token counts ``[N, 9]`` of responses from the reference; all that matters of them, the last one ends them."""
    tokens = jax.random.categorical(key, reference[prompts][:, None], shape=(prompts.size, LONGEST))
    before = jnp.cumsum(tokens == TOKENS, axis=1) - (tokens == TOKENS) == 0
    return jnp.sum(jax.nn.one_hot(tokens, TOKENS + 1) * before[..., None], axis=1)


def quality(counts: jax.Array, worth: jax.Array) -> jax.Array:
    """Mean worth of the tokens, 0 of none."""
    content = counts[:, :TOKENS]
    return jnp.sum(content * worth, axis=1) / jnp.maximum(jnp.sum(content, axis=1), 1)


def judge(policy: jax.Array, worth: jax.Array) -> dict:
    """Expected quality and number of tokens (the end not counted) of a policy's responses, mean over prompts."""
    goes_on = 1 - jnp.exp(policy[:, TOKENS])
    tokens = jnp.exp(policy[:, :TOKENS]) / goes_on[:, None]
    lengths = jnp.sum(goes_on[:, None] ** jnp.arange(1, LONGEST + 1), axis=1)
    return {"quality": jnp.mean(goes_on * jnp.sum(tokens * worth, axis=1)), "length": jnp.mean(lengths)}


def values(method: str, logps: tuple, lengths: tuple, beta, bias) -> jax.Array:
    """Losses ``[N]`` of a method."""
    if method == "SimPO":
        return losses.simpo_loss(*logps[:2], *lengths, beta=beta)
    if method == "LN-DPO":
        return losses.ln_dpo_loss(*logps, *lengths, beta=beta)
    if method == "R-DPO":
        return losses.r_dpo_loss(*logps, *lengths, beta=beta, alpha=bias)
    return losses.dpo_loss(*logps, beta=beta)


def learn(key, bias, beta, *, method: str) -> dict:
    """Trains one policy."""
    drawn = jax.random.split(key, 6)
    worth = WORTH * jax.random.normal(drawn[0], (PROMPTS, TOKENS))
    first = jax.nn.log_softmax(0.5 * jax.random.normal(drawn[1], (PROMPTS, TOKENS)))
    reference = jnp.concatenate([first + jnp.log(1 - ENDS), jnp.full((PROMPTS, 1), jnp.log(ENDS))], axis=1)
    prompts = jax.random.randint(drawn[2], (PAIRS,), 0, PROMPTS)
    one, other = (draw(key, reference, prompts) for key in drawn[3:5])
    liked = [quality(counts, worth[prompts]) + bias * jnp.sum(counts, axis=1) for counts in (one, other)]
    wins = jax.random.uniform(drawn[5], (PAIRS, 1)) < jax.nn.sigmoid(liked[0] - liked[1])[:, None]
    chosen, rejected = jnp.where(wins, one, other), jnp.where(wins, other, one)
    lengths = jnp.sum(chosen, axis=1), jnp.sum(rejected, axis=1)

    def loss(logits):
        tables = jax.nn.log_softmax(logits)[prompts], reference[prompts]
        logps = [jnp.sum(counts * table, axis=1) for table in tables for counts in (chosen, rejected)]
        return jnp.mean(values(method, logps, lengths, beta, bias))

    before = judge(reference, worth)["quality"]
    watch = lambda logits: judge(jax.nn.log_softmax(logits), worth)  # noqa: E731
    _, path = tabular.descend(loss, reference, steps=STEPS, learning_rate=0.05, watch=watch)
    within = path["length"][:, None] <= jnp.array(LIMITS)
    return {
        "quality": path["quality"][-1] - before,
        "length": path["length"][-1],
        "length of chosen": jnp.mean(lengths[0]) - 1,
        "best": jnp.max(jnp.where(within, path["quality"][:, None] - before, 0), axis=0),
    }


def sweep(keys, bias: float, method: str, betas: tuple) -> dict:
    """Quality and length ``[seeds]`` of each beta, and the best quality with so many tokens ``[seeds, limits]``."""
    runs = jax.vmap(jax.vmap(functools.partial(learn, method=method), (0, None, None)), (None, None, 0))
    found = jax.jit(runs)(keys, bias, jnp.array(betas))
    best = jnp.max(found.pop("best"), axis=0)
    return {"best": best} | {beta: {name: rows[n] for name, rows in found.items()} for n, beta in enumerate(betas)}


def compare(found: dict) -> list[lab.Check]:
    """What the methods should do against DPO on biased labels."""
    plain, charged = found["DPO"][1.0], found["R-DPO"][1.0]
    ratio = plain["length"] / plain["length of chosen"]
    checks = [
        lab.above("biased: DPO at beta 1 writes more than twice as many tokens as chosen responses have", ratio, 2),
        lab.below("biased: R-DPO writes fewer tokens than DPO, both at beta 1", charged["length"], plain["length"]),
        lab.above(
            "biased: R-DPO's quality is above DPO's less 0.1, both at beta 1",
            charged["quality"],
            plain["quality"] - 0.1,
        ),
    ]
    for limit in (10, 20):
        checks += [more_quality(found, method, limit, "biased") for method in list(found)[1:]]
    return checks


def more_quality(found: dict, method: str, limit: int, label: str) -> lab.Check:
    """A method against DPO at equal length."""
    pair = (found[name]["best"][:, LIMITS.index(limit)] for name in (method, "DPO"))
    return lab.above(f"{label}: {method} has more quality than DPO with {limit} tokens", *pair)


def table(found: dict, label: str) -> dict:
    """Rows of the result table: every beta after the last step, and the best with a number of tokens."""
    rows = {}
    for method, runs in found.items():
        betas = {beta: run for beta, run in runs.items() if beta != "best"}
        rows |= {f"{label}: {method}, beta {beta:g}": run for beta, run in betas.items()}
        best = {f"quality, {limit} tokens": runs["best"][:, n] for n, limit in enumerate(LIMITS)}
        rows[f"{label}: {method}, best"] = best
    return rows


def run(quick: bool) -> lab.Outcome:
    """All methods on biased labels; in full also on labels without a bias."""
    keys, grids = jax.random.split(jax.random.key(0), 4 if quick else 10), QUICK if quick else BETAS
    found = {method: sweep(keys, BIAS, method, betas) for method, betas in grids.items()}
    checks, measured = compare(found), table(found, "biased")
    if not quick:
        fair = {method: sweep(keys, 0.0, method, betas) for method, betas in grids.items() if method != "R-DPO"}
        measured |= table(fair, "no bias")
        checks += [more_quality(fair, method, 20, "no bias") for method in ("LN-DPO", "SimPO")]
    best = {method: runs["best"] for method, runs in found.items()}
    title = "Best quality of policies that write no more than so much"
    figure = plots.bands(
        LIMITS, best, title=title, xlabel="length (tokens)", ylabel="true quality above the reference's"
    )
    return lab.Outcome(measured, checks, figure)
