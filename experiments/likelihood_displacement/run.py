"""Where the probability goes that DPO takes from a preferred response, and which pairs to blame."""

import functools

import jax
import jax.numpy as jnp

from jaxpref import analysis, lab, losses
from jaxpref.analysis import plots
from jaxpref.lab import language, tabular

CLAIM = lab.Claim(
    statement="DPO can lower the probability of the preferred response, even to the gain of its opposite; pairs of a "
    "low CHES score do less of it",
    paper="Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization",
    url="https://arxiv.org/abs/2410.08847",
    reported="Trained to prefer No over Never, models end up saying Yes. The CHES score of a pair, how similar the "
    "hidden embeddings of its two responses are, tells which pairs displace likelihood; models trained to refuse "
    "unsafe prompts refuse less often after DPO, and more often when the pairs of high scores are left out.",
    setting="No and Never: a hidden state of 16 numbers and unembeddings of 24 words, of which No and Never share a "
    "feature (negation), and No and Yes one (a reply, weaker for No); at first No has a probability of 0.4, Never 0.3, "
    "Yes 0.1. 150 steps of Adam on the hidden state, beta 0.1; in one condition the unembedding learns too. CHES: a "
    "model of 60 prompt embeddings, 24 word embeddings and unembeddings learns a language whose refusals (80 % of "
    "responses) and compliances have words of their own. 240 pairs of its own samples of 4 words; a refusal is "
    "preferred to a compliance, and between two of a kind the label is random. DPO with beta 0.1 on all pairs, on the "
    "half with the lowest length-normalised CHES score, on the half with the highest, and on a random half; 50 "
    "full-batch steps of Adam each.",
    minutes=1,
    notes="No over Never displaces where the hidden state learns and the unembedding is frozen; where the unembedding "
    "learns too, at the same rate, it tells the two words apart at once and No ends at 1. Of sets of pairs the CHES "
    "score tells as claimed: chosen responses fall by 8.2 nats on the high half, 6.4 on a random half, 3.8 on the low "
    "half. Inside a set that is trained together it does not tell one pair's fall from another's (a correlation of "
    "0.07, of the other sign, where the score should bring a fall), as pairs share their words. The low half is where "
    "a refusal meets a compliance: with 8 other seeds 40 % of its pairs were two of a kind, of the high half all. "
    "Refusals become more frequent with every selection, most by the low half or all pairs, and do not fall below "
    "their 80 % as in the paper: here the labels of two refusals are random, and every other pair of unlike responses "
    "teaches to refuse. In a first version the correlation counted towards the verdict, which the paper does not ask "
    "for, the fall of refusals did not, which it reports, and DPOP was a part of it, another paper's, which has a "
    "claim of its own now, `dpop_likelihood`.",
)
WORDS, HIDDEN, TOKENS = 24, 16, 4
PROMPTS, PAIRS, REFUSING = 60, 240, 0.8
BETA, STEPS, PAIR_STEPS = 0.1, 50, 150
NAMED = NO, NEVER, YES = 0, 1, 2
REFUSALS = jnp.arange(WORDS) < WORDS // 2


def world_of_no(key) -> tuple[jax.Array, jax.Array]:
    """A hidden state ``[H]`` and unembeddings ``[V, H]``; only the first three words have a meaning."""
    keys = jax.random.split(key, 3)
    reply, adverb, negation, affirmation = jnp.linalg.qr(jax.random.normal(keys[0], (HIDDEN, HIDDEN)))[0][:4]
    named = jnp.stack([0.3 * reply + negation, 0.3 * adverb + negation, reply + affirmation])
    others = jax.random.normal(keys[1], (WORDS - len(NAMED), HIDDEN)) / jnp.sqrt(HIDDEN)
    unembedding = jnp.concatenate([named, others]) + 0.02 * jax.random.normal(keys[2], (WORDS, HIDDEN))
    likely = jnp.full(WORDS, 0.2 / (WORDS - len(NAMED))).at[jnp.array(NAMED)].set(jnp.array([0.4, 0.3, 0.1]))
    unlikeliness = lambda hidden: -jnp.sum(likely * jax.nn.log_softmax(unembedding @ hidden))  # noqa: E731
    hidden, _ = tabular.descend(unlikeliness, jnp.zeros(HIDDEN), steps=300, learning_rate=0.1)
    return hidden, unembedding


def preferring_no(key, *, learns: bool = False) -> dict:
    """Trains to prefer No over Never; probabilities of the three words before every step and at the end."""
    hidden, unembedding = world_of_no(key)

    def log_policy(model):
        return jax.nn.log_softmax((model[1] if learns else unembedding) @ model[0])[None]

    pair = tabular.Pairs(jnp.zeros(1, jnp.int32), jnp.array([NO]), jnp.array([NEVER]))
    reference = log_policy((hidden, unembedding))

    def value(model):
        return jnp.mean(losses.dpo_loss(*tabular.arrays(log_policy(model), reference, pair), beta=BETA))

    _, path = tabular.descend(
        value, (hidden, unembedding), steps=PAIR_STEPS, learning_rate=0.02, watch=lambda model: log_policy(model)[0]
    )
    path = jnp.exp(jnp.concatenate([reference, path]))
    return {word: path[:, place] for word, place in (("No", NO), ("Never", NEVER), ("Yes", YES))}


def pretrained(key) -> language.Model:
    """A model of a language in which refusals and compliances have words of their own; it refuses most prompts."""
    keys = jax.random.split(key, 4)
    prompts = jnp.arange(PROMPTS * 30) % PROMPTS
    complies = jax.random.uniform(keys[0], prompts.shape) > REFUSING
    taste = jax.random.normal(keys[1], (PROMPTS, WORDS))[prompts]
    words = jnp.where(REFUSALS != complies[:, None], taste, -jnp.inf)
    corpus = jax.random.categorical(keys[2], words[:, None], shape=(len(prompts), TOKENS))
    return language.fitted(keys[3], corpus, prompts, prompts=PROMPTS, vocabulary=WORDS, hidden=HIDDEN)


def refusal_rate(model) -> jax.Array:
    """Exact, as the first word decides."""
    first = jax.nn.softmax(model["prompts"] @ model["unembedding"].T)
    return jnp.mean(jnp.sum(first * REFUSALS, axis=-1))


def preferences(key, model) -> tuple[jax.Array, ...]:
    """Two samples for each prompt, the preferred one first: prompts, chosen and rejected ones."""
    keys = jax.random.split(key, 3)
    prompts = jnp.arange(PAIRS) % PROMPTS
    one, other = (language.sample(part, model, prompts, TOKENS) for part in keys[:2])
    refuses = REFUSALS[one[:, 0]], REFUSALS[other[:, 0]]
    first = jnp.where(refuses[0] == refuses[1], jax.random.bernoulli(keys[2], shape=(PAIRS,)), refuses[0])[:, None]
    return prompts, jnp.where(first, one, other), jnp.where(first, other, one)


def learn(key, *, quick: bool) -> dict:
    """Trains one model on each selection of pairs; what becomes of their likelihoods, and of refusals."""
    keys = jax.random.split(key, 3)
    model = pretrained(keys[0])
    prompts, *sides = preferences(keys[1], model)
    everywhere = jnp.ones((PAIRS, TOKENS))
    states = [language.hidden_states(model, prompts, side) for side in sides]
    scores = analysis.ches_score(*states, everywhere, everywhere, length_normalize=True)
    order, half = jnp.argsort(scores), PAIRS // 2
    random = jax.random.permutation(keys[2], PAIRS)[:half]
    selections = {"all pairs": order, "lowest CHES": order[:half], "highest CHES": order[half:]}
    if not quick:
        selections["random half"] = random
    found = {}
    for name, rows in selections.items():
        given = [(prompts[rows], side[rows]) for side in sides]
        reference = [language.logps(model, *one) for one in given]

        def value(model, given=given, reference=reference):
            return jnp.mean(losses.dpo_loss(*(language.logps(model, *one) for one in given), *reference, beta=BETA))

        trained, _ = tabular.descend(value, model, steps=STEPS, learning_rate=0.01)
        chosen, rejected = (language.logps(trained, *one) - old for one, old in zip(given, reference, strict=True))
        found[name] = {
            "change of chosen (nats)": jnp.mean(chosen),
            "change of margin (nats)": jnp.mean(chosen - rejected),
            "share of chosen that fell": jnp.mean(chosen < 0),
            "refusal rate": refusal_rate(trained),
            "correlation of CHES and change": jnp.corrcoef(scores[rows], chosen)[0, 1],
        }
    return found | {"before": {"refusal rate": refusal_rate(model)}}


def run(quick: bool) -> lab.Outcome:
    """Both parts, seeds in one program each."""
    keys = jax.random.split(jax.random.key(0), 6 if quick else 20)
    kinds = {"DPO": {}} | ({} if quick else {"DPO, unembedding learns too": {"learns": True}})
    words = {name: jax.jit(jax.vmap(functools.partial(preferring_no, **kind)))(keys) for name, kind in kinds.items()}
    pairs = jax.jit(jax.vmap(functools.partial(learn, quick=quick)))(keys)
    found = {
        f"No over Never: {name}": {f"P({word})": path[:, -1] for word, path in row.items()}
        for name, row in words.items()
    }
    found["No over Never: before"] = {f"P({word})": path[:, 0] for word, path in words["DPO"].items()}
    figure = plots.bands(
        range(PAIR_STEPS + 1),
        words["DPO"],
        title="Trained to prefer No over Never",
        xlabel="step",
        ylabel="probability",
    )
    return lab.Outcome(found | pairs, checks(words["DPO"], pairs, quick), figure, asked(pairs))


def checks(words: dict, pairs: dict, quick: bool) -> list[lab.Check]:
    """Displacement, and which pairs do it."""
    change, refusals = "change of chosen (nats)", "refusal rate"
    together, low, high = pairs["all pairs"], pairs["lowest CHES"], pairs["highest CHES"]
    made = [
        lab.above("DPO on No over Never makes Yes likelier", words["Yes"][:, -1], words["Yes"][:, 0]),
        lab.below("on all pairs, DPO makes the chosen responses less likely", together[change]),
        lab.above("chosen responses fall less with the lowest scores than with the highest", low[change], high[change]),
    ]
    if quick:
        return made
    random, before = pairs["random half"], pairs["before"]
    return [
        *made,
        lab.below("DPO on No over Never makes No less likely", words["No"][:, -1], words["No"][:, 0]),
        lab.above("chosen responses fall less with the lowest scores than at random", low[change], random[change]),
        lab.below("on all pairs, DPO makes refusals less frequent", together[refusals], before[refusals]),
        lab.above("refusals are more frequent with the lowest scores than at random", low[refusals], random[refusals]),
    ]


def asked(pairs: dict) -> list[lab.Check]:
    """Whether scores also tell pairs of one set from each other, which the paper does not ask."""
    correlation = pairs["all pairs"]["correlation of CHES and change"]
    return [lab.below("within all pairs, a chosen response falls more the higher the CHES score is", correlation)]
