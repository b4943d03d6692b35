"""A small language model learns right answers from pairs whose wrong answers differ in one word, or in all."""

import functools
import itertools

import jax
import jax.numpy as jnp

from jaxpref import lab, losses
from jaxpref.analysis import plots
from jaxpref.lab import language, tabular

CLAIM = lab.Claim(
    statement="DPO makes preferred responses less likely where pairs differ in one word; DPOP does not, and is better "
    "whatever the pairs differ in",
    paper="Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
    url="https://arxiv.org/abs/2402.13228",
    reported="DPO lowers the likelihood of preferred responses, most of all where the edit distance of pairs is low "
    "(mathematical solutions with one number changed), and there that of the words after the change; DPOP, which "
    "charges for it, does not, and has the better models on tasks of low and of high edit distance.",
    setting="A language model of a hidden state that fades (an embedding of the prompt and those of the words before, "
    "32 numbers; 24 words), fitted to a corpus of 60 prompts with 10 responses of 6 words each, in which a word is "
    "the prompt's right one with probability 0.71. 240 pairs: the right answer is preferred to one in which one word "
    "is a wrong one (at a random place), or all are. Beta 0.3 and the penalty's lambda 50, as published; 50 "
    "full-batch steps of Adam on all parameters at 0.001, 0.003 or 0.01. Likelihoods are compared at 0.01; right "
    "answers, the probability of drawing a prompt's right answer, where each loss has the rate that suits it best.",
    minutes=2,
    notes="How far DPO lowers the preferred responses hangs on how long it trains: with one word edited at a rate of "
    "0.001 they still rise, by 0.3 nats in the mean (36 % of them fall), at 0.003 they fall by 2 and at 0.01 by 11, "
    "although the margin grows throughout. The words after the edit fall by 1.7 nats each at 0.01. Where all words "
    "are edited the preferred responses rise at every rate, though a third of them falls at 0.01. DPOP's lead in "
    "right answers is there with both kinds of pairs, also where each loss has the rate that suits it best; at 0.001 "
    "it is behind DPO, as its penalty makes it slower. Right answers stay rare, below one in a hundred, as the small "
    "model cannot hold 60 answers of 6 words. A trial with a lambda of 5 instead of 50, 5 seeds and a hidden state of "
    "16 numbers kept preferred responses as well.",
)
WORDS, HIDDEN, TOKENS, PROMPTS, PAIRS, RIGHT = 24, 32, 6, 60, 240, 0.7
BETA, LAM, STEPS = 0.3, 50.0, 50
RATES = (0.001, 0.003, 0.01)
LOSSES = {
    "DPO": functools.partial(losses.dpo_loss, beta=BETA),
    "DPOP": functools.partial(losses.dpop_loss, beta=BETA, lam=LAM),
}
EDITS = ("one word", "all words")
CHANGE, AFTER, ANSWERS = "change of chosen (nats)", "change of words after the edit (nats)", "right answers"


def world(key) -> tuple[language.Model, jax.Array]:
    """A model that knows right answers ``[P, T]`` roughly: a word of its corpus is the right one, or any."""
    keys = jax.random.split(key, 4)
    answers = jax.random.randint(keys[0], (PROMPTS, TOKENS), 0, WORDS)
    prompts = jnp.arange(PROMPTS * 10) % PROMPTS
    sure = jax.random.uniform(keys[1], (len(prompts), TOKENS)) < RIGHT
    corpus = jnp.where(sure, answers[prompts], jax.random.randint(keys[2], sure.shape, 0, WORDS))
    return language.fitted(keys[3], corpus, prompts, prompts=PROMPTS, vocabulary=WORDS, hidden=HIDDEN), answers


def learn(key, rate) -> dict:
    """Trains a model to prefer right answers to wrong ones, with both losses and both kinds of wrong ones."""
    drawn = jax.random.split(key, 3)
    model, answers = world(drawn[0])
    prompts = jnp.arange(PAIRS) % PROMPTS
    chosen = answers[prompts]
    wrong = (chosen + jax.random.randint(drawn[1], chosen.shape, 1, WORDS)) % WORDS
    place = jax.random.randint(drawn[2], (PAIRS, 1), 0, TOKENS)
    rejected = {"one word": jnp.where(jnp.arange(TOKENS) == place, wrong, chosen), "all words": wrong}
    found = {}
    for (method, loss), (edits, other) in itertools.product(LOSSES.items(), rejected.items()):
        sides = (chosen, other)
        reference = [language.logps(model, prompts, side) for side in sides]

        def value(model, loss=loss, sides=sides, reference=reference):
            return jnp.mean(loss(*(language.logps(model, prompts, side) for side in sides), *reference))

        trained, _ = tabular.descend(value, model, steps=STEPS, learning_rate=rate)
        change = language.token_logps(trained, prompts, chosen) - language.token_logps(model, prompts, chosen)
        margin = jnp.sum(change, axis=1) - (language.logps(trained, prompts, other) - reference[1])
        found[method, edits] = {
            CHANGE: jnp.mean(jnp.sum(change, axis=1)),
            "share of chosen that fell": jnp.mean(jnp.sum(change, axis=1) < 0),
            AFTER: jnp.mean(change, where=jnp.arange(TOKENS) > place),
            "change of margin (nats)": jnp.mean(margin),
            ANSWERS: jnp.mean(jnp.exp(language.logps(trained, prompts, chosen))),
        }
    return found


def run(quick: bool) -> lab.Outcome:
    """Both losses on both kinds of pairs, seeds and learning rates in one program."""
    seeds, rates = (5, RATES[-1:]) if quick else (20, RATES)
    table = jax.jit(jax.vmap(jax.vmap(learn, (0, None)), (None, 0)))(
        jax.random.split(jax.random.key(0), seeds), jnp.array(rates)
    )
    found = {case: [jax.tree.map(lambda x, n=n: x[n], row) for n in range(len(rates))] for case, row in table.items()}
    measured = {
        f"{method}, {edits} edited, rate {rate:g}": row
        for (method, edits), rows in found.items()
        for rate, row in zip(rates, rows, strict=True)
    }
    figure = plots.groups(
        {f"{method},\n{edits}": rows[-1][CHANGE] for (method, edits), rows in found.items()},
        title="What becomes of right answers that are preferred to wrong ones",
        xlabel="loss, and what differs in a pair",
        ylabel="change of log-probability (nats)",
    )
    return lab.Outcome(measured, checks(found), figure, [] if quick else asked(found))


def checks(found: dict) -> list[lab.Check]:
    """What becomes of preferred responses, and which loss is better, all else equal."""
    dpo, far, dpop, far_dpop = (found[method, edits][-1] for method in LOSSES for edits in EDITS)
    return [
        lab.below("one word edited: DPO makes preferred responses less likely", dpo[CHANGE]),
        lab.below("DPO does so more than where all words are edited", dpo[CHANGE], far[CHANGE]),
        lab.below("one word edited: DPO makes the words after it less likely", dpo[AFTER]),
        lab.above("one word edited: DPOP makes preferred responses likelier", dpop[CHANGE]),
        lab.above("one word edited: DPOP makes the words after it likelier", dpop[AFTER]),
        lab.above("one word edited: DPOP answers rightly more often than DPO", dpop[ANSWERS], dpo[ANSWERS]),
        lab.above("all words edited: DPOP answers rightly more often than DPO", far_dpop[ANSWERS], far[ANSWERS]),
    ]


def asked(found: dict) -> list[lab.Check]:
    """Which loss is better where each has the learning rate that suits it best."""
    best = {case: max((row[ANSWERS] for row in rows), key=jnp.mean) for case, rows in found.items()}
    statement = "{} edited: DPOP answers rightly more often than DPO, both at their best rate"
    return [lab.above(statement.format(edits), best["DPOP", edits], best["DPO", edits]) for edits in EDITS]
