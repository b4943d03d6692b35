"""Instructions that a rule can check exactly: what a prompt says, and whether a response follows it.

A config names them, with their argument after a colon: ``"at_most_words:50"``, ``"contains:tea"``, ``"lower_case"``.
A word is what stands between white space; white space around a response does not count.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxpref.errors import ConfigError, hint


class Instruction(NamedTuple):
    """An instruction that a rule can check.

    Attributes:
        text: what a prompt says.
        check: ``response -> bool``, whether a response follows it.
    """

    text: str
    check: Callable[[str], bool]


def _lines(response: str) -> list[str]:
    return [line for line in response.strip().splitlines() if line.strip()]


def _uses(response: str, word: str) -> bool:
    """Whether a word or phrase stands in a response by itself, in upper or lower case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", response, re.IGNORECASE) is not None


# name -> (text, check without an argument)
PLAIN: dict[str, tuple[str, Callable[[str], bool]]] = {
    "lower_case": ("Use no capital letters.", lambda response: not any(map(str.isupper, response))),
    "upper_case": ("Use capital letters only.", lambda response: not any(map(str.islower, response))),
    "no_comma": ("Use no commas.", lambda response: "," not in response),
    "no_digit": ("Use no digits.", lambda response: not any(map(str.isdigit, response))),
    "no_question_mark": ("Use no question marks.", lambda response: "?" not in response),
    "no_exclamation_mark": ("Use no exclamation marks.", lambda response: "!" not in response),
    "one_line": ("Answer in a single line.", lambda response: len(_lines(response)) == 1),
    "quoted": (
        "Put the whole answer in double quotation marks.",
        lambda response: re.fullmatch(r'"[^"]*"', response.strip()) is not None,
    ),
}
# name -> (type of the argument, text, check with it)
WITH_ARGUMENT: dict[str, tuple[type, str, Callable[[str, Any], bool]]] = {
    "at_most_words": (int, "Use at most {} words.", lambda response, most: len(response.split()) <= most),
    "at_least_words": (int, "Use at least {} words.", lambda response, least: len(response.split()) >= least),
    "contains": (str, 'Use the word "{}".', _uses),
    "lacks": (str, 'Do not use the word "{}".', lambda response, word: not _uses(response, word)),
    "begins_with": (str, 'Begin with "{}".', lambda response, start: response.strip().startswith(start)),
    "ends_with": (str, 'End with "{}".', lambda response, end: response.strip().endswith(end)),
    "bullet_points": (
        int,
        'Write exactly {} lines that begin with "- ".',
        lambda response, number: sum(line.startswith("- ") for line in _lines(response)) == number,
    ),
}
DEFAULT = (
    "at_most_words:100", "at_least_words:20", "lower_case", "no_comma", "no_digit", "no_question_mark",
    "no_exclamation_mark", "one_line", "bullet_points:3", "contains:because", "lacks:very",
)  # fmt: skip


def instruction(name: str) -> Instruction:
    """The instruction of a name, such as ``"no_comma"`` or ``"at_most_words:50"``.

    Raises:
        ConfigError: an unknown name, or a missing, needless or wrong argument.
    """
    kind, colon, argument = str(name).partition(":")
    if kind in PLAIN:
        if colon:
            raise ConfigError(f"the instruction {name!r} has an argument, but {kind} takes none; remove it.")
        return Instruction(*PLAIN[kind])
    if kind not in WITH_ARGUMENT:
        raise ConfigError(
            f"there is no instruction {kind!r} that a rule can check; {hint(kind, (*PLAIN, *WITH_ARGUMENT))}"
        )
    wanted, text, check = WITH_ARGUMENT[kind]
    argument = argument.strip()
    if not argument or (wanted is int and not argument.isdecimal()):
        what = "a whole number" if wanted is int else "some text"
        raise ConfigError(f"the instruction {name!r} needs {what} as its argument, for example '{kind}:3'.")
    value = wanted(argument)
    return Instruction(text.format(argument), lambda response: check(response, value))


def load(names: Sequence[str]) -> tuple[Instruction, ...]:
    """The instructions of several names."""
    if isinstance(names, str) or not names:
        raise ConfigError(f"instructions is {names!r}; expected a list of names such as {', '.join(DEFAULT[:3])}.")
    return tuple(instruction(name) for name in names)
