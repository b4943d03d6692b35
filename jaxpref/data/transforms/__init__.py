"""Records made of other material: pairs out of treatments, votes and scores, of instructions, and graded responses.

Pure functions on rows as a file holds them; what they return, :func:`jaxpref.data.records.parse` reads. A config names
them in the field ``transform`` of a source (:func:`load`), as a name or as ``dict(name=..., option=...)``:

====================  =======================================  =========  ===========================================
name                  rows of the source                       makes      options
====================  =======================================  =========  ===========================================
best_against_random   ``prompt``, ``completions``, ``scores``  pairs      seed
ultrafeedback         ``instruction``, ``completions``         pairs      mode, seed
comparison            ``response_a``, ``response_b``, a vote   pairs      first, second, tie
counterfactual        responses to two prompts                 pairs      mode
annotators            any, with ``user_id``                    the same   names
mapl_intra            pairs                                    joint      count, relation, response, instructions, ...
mapl_inter            pairs                                    crossed    count, instructions, separator, seed
degrees               pairs                                    graded     levels, chosen_weight, rejected_weight
====================  =======================================  =========  ===========================================
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxpref.data import fields
from jaxpref.data.transforms import mapl
from jaxpref.data.transforms.grading import degrees, graded, key_phrases
from jaxpref.data.transforms.instructions import Instruction, instruction
from jaxpref.data.transforms.mapl import mapl_inter_pair, mapl_intra_pair
from jaxpref.data.transforms.options import Maker, Row
from jaxpref.data.transforms.pairs import annotators, comparison, counterfactual, counterfactual_pairs
from jaxpref.data.transforms.scored import best, best_against_random, binarize_ultrafeedback, ultrafeedback
from jaxpref.errors import ConfigError, DataError, hint

__all__ = [
    "TRANSFORMS",
    "Instruction",
    "Transform",
    "best_against_random",
    "binarize_ultrafeedback",
    "counterfactual_pairs",
    "graded",
    "instruction",
    "key_phrases",
    "load",
    "mapl_inter_pair",
    "mapl_intra_pair",
]

OF_PAIRS = ("pairs", "demonstrations", "unpaired", "joint", "prompts")  # kinds that rows of pairs can be read as


class Transform(NamedTuple):
    """What a config names.

    Attributes:
        reads: the kind of the rows that it takes, which a built-in world has to make; empty where no world can.
        makes: the kinds of records that its rows can be read as; empty where they are what they were.
        maker: ``(**options) -> Maker``.
    """

    reads: str
    makes: tuple[str, ...]
    maker: Callable[..., Maker]


TRANSFORMS = {
    "best_against_random": Transform("ranked", OF_PAIRS, best),
    "ultrafeedback": Transform("", OF_PAIRS, ultrafeedback),
    "comparison": Transform("", OF_PAIRS, comparison),
    "counterfactual": Transform("", OF_PAIRS, counterfactual),
    "annotators": Transform("", (), annotators),
    "mapl_intra": Transform("pairs", ("joint",), mapl.intra),
    "mapl_inter": Transform("pairs", ("crossed",), mapl.inter),
    "degrees": Transform("pairs", ("graded",), degrees),
}


class Loaded(NamedTuple):
    """The transforms of a source, one after another.

    Attributes:
        path: of the config's field, for messages.
        reads: kind of the rows that the first one takes.
        steps: ``(name, maker)`` of each.
    """

    path: str
    reads: str
    steps: tuple[tuple[str, Maker], ...] = ()

    def rows(self, row: Row, place: int, leave_out: Callable[[str], None]) -> list[Row]:
        """The rows made of one row of the source; ``leave_out`` is told why some are not.

        Raises:
            DataError: the row cannot be transformed; the message names the transform, not the file and line.
        """
        rows = [row]
        for name, make in self.steps:
            made = []
            try:
                for each in rows:
                    made += make(_object(each), place)
            except DataError as error:
                raise DataError(f"{self.path} {name!r}: {error}") from error
            for reason in made:
                if isinstance(reason, str):
                    leave_out(reason)
            rows = [each for each in made if not isinstance(each, str)]
        return rows


def load(path: str, described: Any, kind: str) -> Loaded:
    """Reads the field ``transform`` of a source.

    Args:
        path: of the field, for messages: ``data.pairs.transform``.
        described: a name, ``dict(name=..., **options)``, or a list of such; None for no transform.
        kind: of the stream's records.

    Raises:
        ConfigError: an unknown transform or option, a wrong value, or rows of another kind than what comes next reads.
    """
    several = described if isinstance(described, list | tuple) else [described] if described is not None else []
    steps, first, makes = [], kind, None
    for one in several:
        name, options = _described(path, one)
        chosen = TRANSFORMS[name]
        if makes is None:
            first = chosen.reads
        elif chosen.makes and chosen.reads not in makes:
            raise ConfigError(f"{path}: {name!r} does not read the {makes[0]} that {steps[-1][0]!r} makes.")
        steps.append((name, _maker(path, name, options)))
        makes = chosen.makes or makes
    if makes is not None and kind not in makes:
        raise ConfigError(
            f"{path}: {steps[-1][0]!r} makes rows of kind {makes[0]!r}, which a stream of kind {kind!r} does not read; "
            f"set kind to {' or '.join(map(repr, makes))}."
        )
    return Loaded(path, first, tuple(steps))


def _described(path: str, one: Any) -> tuple[str, dict[str, Any]]:
    """(name, options) of a transform."""
    given = dict(one.items()) if hasattr(one, "items") else {"name": one}
    name = given.pop("name", None)
    if name is None:
        raise ConfigError(f"{path} has no field 'name'; expected one of {', '.join(sorted(TRANSFORMS))}.")
    if not isinstance(name, str) or name not in TRANSFORMS:
        raise ConfigError(f"{path} is {name!r}, which does not exist; {hint(name, TRANSFORMS)}")
    return name, given


def _maker(path: str, name: str, options: Mapping[str, Any]) -> Maker:
    known = inspect.signature(TRANSFORMS[name].maker).parameters
    for option in options:
        if option not in known:
            raise ConfigError(f"{path}: {name!r} has no option {option!r}; {hint(option, known)}")
    try:
        return TRANSFORMS[name].maker(**options)
    except ConfigError as error:
        raise ConfigError(f"{path}: {name!r}: {error}") from error


def _object(row: Any) -> Row:
    """A row without the fields that are null."""
    if not isinstance(row, Mapping):
        raise DataError(f"the row is {fields.kind_of(row)}; expected an object with named fields.")
    return {key: value for key, value in row.items() if value is not None}
