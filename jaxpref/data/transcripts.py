"""Anthropic HH transcripts: dialogues as text, with ``Human:`` and ``Assistant:`` before their turns."""

import re

from jaxpref.data.fields import Message

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str, bool]:
    """Splits two Anthropic HH transcripts at the chosen one's last assistant turn.

    The leading space belongs to the responses.

    Returns:
        (prompt, chosen, rejected, shared): the rejected transcript is cut at the same length; ``shared`` says whether
        it begins with the prompt. One that does, but goes on for more turns, was not written to this prompt.
    """
    cut = chosen.rfind(ASSISTANT) + len(ASSISTANT)
    return chosen[:cut], chosen[cut:], rejected[cut:], rejected.startswith(chosen[:cut])


def transcript_messages(transcript: str) -> tuple[Message, ...]:
    """The turns of an Anthropic HH transcript; a last turn without words, the cue to answer, is left out."""
    _, *parts = re.split(r"\n\n(Human|Assistant):", transcript)
    roles = ("user" if name == "Human" else "assistant" for name in parts[::2])
    messages = [Message(role, content.strip()) for role, content in zip(roles, parts[1::2], strict=True)]
    return tuple(messages[:-1] if messages and not messages[-1].content else messages)


def diverging_turns(chosen: str, rejected: str) -> tuple[tuple[Message, ...], Message | None, Message | None]:
    """(common turns, first different turn of each) of two transcripts; None where a transcript has ended."""
    one, other = transcript_messages(chosen), transcript_messages(rejected)
    same = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:same], *(turns[same] if same < len(turns) else None for turns in (one, other))
