"""Word-level tokens for a world: its own phrases are one token each, and any other text falls back to its bytes.

A review of the sentiment world takes about 7 tokens instead of 25 bytes, and prompt and response together at most 14:
models learn it several times faster. Encoding loses nothing: every text decodes to itself.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence

BYTES = 256


@dataclasses.dataclass(frozen=True)
class Words:
    """Ids 0 to 255 are bytes, then come the phrases in the order given, then beginning and end of sequence."""

    phrases: tuple[str, ...]

    @property
    def bos_id(self) -> int:
        return BYTES + len(self.phrases)

    @property
    def eos_id(self) -> int:
        return BYTES + len(self.phrases) + 1

    @property
    def vocab_size(self) -> int:
        return BYTES + len(self.phrases) + 2

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the phrases: equal for tokenizers that encode alike."""
        return hashlib.sha256("\0".join(self.phrases).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens; where several phrases fit, the longest is taken."""
        ids: list[int] = []
        start = 0
        for match in self._pattern.finditer(text):
            ids.extend(text[start : match.start()].encode())
            ids.append(self._ids[match.group()])
            start = match.end()
        return ids + list(text[start:].encode())

    def decode(self, ids: Sequence[int]) -> str:
        """The text; special tokens vanish, ids outside the vocabulary and broken UTF-8 become U+FFFD."""
        pieces = []
        for number in map(int, ids):
            if number < BYTES:
                pieces.append(bytes([number]))
            elif number < self.bos_id:
                pieces.append(self.phrases[number - BYTES].encode())
            elif number > self.eos_id:
                pieces.append("\ufffd".encode())
        return b"".join(pieces).decode(errors="replace")

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {phrase: BYTES + place for place, phrase in enumerate(self.phrases)}

    @functools.cached_property
    def _pattern(self) -> re.Pattern:
        return re.compile("|".join(map(re.escape, sorted(self.phrases, key=len, reverse=True))))
