"""The lines of a function under construction, each value once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Lines:
    """Assignments to t1, t2, … in order.

    Args:
        written: the lines.
        known: the variable that holds an expression.
        products: the two factors of those that are a product.
    """

    written: list[str] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    products: dict[str, tuple[str, str]] = field(default_factory=dict)

    def name(self, code: str) -> str:
        """The variable that holds this expression."""
        if code.isidentifier():
            return code
        if code not in self.known:
            self.known[code] = f"t{len(self.known) + 1}"
            self.written.append(f"{self.known[code]} = {code}")
        return self.known[code]

    def needed(self, results: Sequence[str]) -> list[str]:
        """The lines that some result depends on."""
        wanted, kept = set(re.findall(r"\w+", " ".join(results))), []
        for line in reversed(self.written):
            name, code = line.split(" = ", 1)
            if name in wanted:
                kept.append(line)
                wanted.update(re.findall(r"\w+", code))
        return kept[::-1]
