"""Claims that train language models on real data: runs of configs, what their policies write, and scores of that."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from jaxpref import data, generation, models
from jaxpref.batch import Layout, Rows
from jaxpref.configuration import schema
from jaxpref.lab.claims import Absent
from jaxpref.lab.folders import root
from jaxpref.training import loop, mesh, starting

ROWS = 128  # sequences scored together


class Trained(NamedTuple):
    """A language model: its architecture, ``{"model": ..., "heads": {term: ...}}``, tokenizer and chat template."""

    model: models.Transformer
    params: Any
    tokenizer: data.tokenizers.Tokenizer
    template: data.templates.Template


class Responses(NamedTuple):
    """Responses after their prompts, a sequence a row from its first token on.

    Attributes:
        tokens: ``[N, T]`` int32; 0 after the end.
        mask: ``[N, T]`` bool, the tokens of the response.
    """

    tokens: np.ndarray
    mask: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each response ``[N]``, the end of sequence included."""
        return self.mask.sum(axis=1)


def real_data(*folders: str) -> pathlib.Path:
    """The folder of real data, ``$JAXPREF_DATA`` or ``../shared/data`` beside the checkout.

    Raises:
        Absent: it is not there, or one of the folders that it should hold is not.
    """
    place = pathlib.Path(os.environ.get("JAXPREF_DATA") or root().parent.parent / "shared" / "data")
    missing = [name for name in folders if not (place / name).is_dir()]
    if missing:
        raise Absent(
            f"needs real data ({', '.join(missing)}), which {place} lacks: set JAXPREF_DATA to the folder that has it."
        )
    return place.resolve()


@contextlib.contextmanager
def compiling_once(folder: str | os.PathLike) -> Iterator[None]:
    """What one run compiles serves all later ones of the same shapes and hyperparameters, whatever their seed."""
    settings = {"jax_compilation_cache_dir": os.fspath(folder), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    if before["jax_compilation_cache_dir"]:
        yield
        return
    try:
        _configure(settings)
        yield
    finally:
        _configure(before)


def _configure(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it reads the settings when it is first used


def train(config, workdir: str | os.PathLike, name: str) -> Trained:
    """Trains a stage in ``workdir/name`` without a word; ``init_from='stage:<name>'`` names an earlier one."""
    config.log.progress = False
    folder = epath.Path(workdir)
    finished = loop.run(config, str(folder / name), stages=folder, say=lambda *_: None)
    parts = finished.parts
    template = data.templates.load(parts.template, parts.tokenizer)
    return Trained(parts.model, finished.state.params, parts.tokenizer, template)


def pretrained(path: str | os.PathLike, template: str = "none") -> Trained:
    """The model of a Hugging Face directory, as it is."""
    source, devices = starting.resolve(os.fspath(path)), mesh.make_mesh(schema.Mesh())
    with jax.set_mesh(devices):
        model, params = starting.load_model(schema.Model(), source, devices, seed=0)
    tokenizer = starting.load_tokenizer("", source)
    return Trained(model, {"model": params, "heads": {}}, tokenizer, data.templates.load(template, tokenizer))


def lay_out(prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], width: int) -> Responses:
    """Rows of ``width`` tokens of prompts and their responses."""
    return Responses(*generation.rows(prompts, responses, width))


def answer(
    policy: Trained, prompts: Sequence[np.ndarray], *, seed: int, max_tokens: int, width: int, samples: int = 1
) -> tuple[Responses, list[str]]:
    """Samples at temperature 1, as rows and as texts; those of prompt n begin at ``n * samples``."""
    generated = generation.generate(
        policy.model, policy.params["model"], prompts, key=jax.random.key(seed), max_tokens=max_tokens, samples=samples,
        stop_ids=policy.template.stop_ids, batch_size=256,
    )  # fmt: skip
    asked = [prompt for prompt in prompts for _ in range(samples)]
    texts = [generation.decode(policy.tokenizer, g, prompt=p) for p, g in zip(asked, generated, strict=True)]
    return lay_out(asked, [each.tokens for each in generated], width), texts


def logps(policy: Trained, responses: Responses) -> np.ndarray:
    """Log-probability of each response under a policy, in nats, ``[N]`` float64."""
    return _in_pieces(lambda *rows: _logps(policy.model, policy.params["model"], *rows), responses)


def scores(reward_model: Trained, responses: Responses) -> np.ndarray:
    """Score of each response under the one head of a reward model, ``[N]`` float64."""
    (term,) = reward_model.params["heads"]
    return _in_pieces(lambda *rows: _scores(reward_model.model, reward_model.params, *rows, f"score/{term}"), responses)


def _in_pieces(function, responses: Responses) -> np.ndarray:
    starts = range(0, len(responses.tokens), ROWS)
    values = [function(*(array[start : start + ROWS] for array in responses)) for start in starts]
    return np.concatenate([np.asarray(each, np.float64) for each in values])


@functools.partial(jax.jit, static_argnames="model")
def _logps(model, params, tokens, mask):
    return models.token_logps(model, params, tokens, mask)[0].sum(axis=1)


@functools.partial(jax.jit, static_argnames=("model", "channel"))
def _scores(model, params, tokens, mask, channel):
    """The channel at the last token of each response."""
    count, width = tokens.shape
    places = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    rows = Rows(tokens, tokens, places, jnp.ones_like(tokens))
    values = models.channels(model, params, rows, Layout(0, 1, width), frozenset({channel}))[channel]
    return values[jnp.arange(count), jnp.max(jnp.where(mask, places, 0), axis=1)]
