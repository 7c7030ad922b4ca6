"""Make the table of docs/models.md from what the oracle tests measured; `make test-all` runs it after them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).parents[2] / ".cache" / "oracles"
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"
COLUMNS = "architecture", "largest error", "round trip", "32 tokens", "gradients", "configurations"


def table(measured: Sequence[Mapping[str, Any]]) -> str:
    """Families in order, a line for each of their architectures."""
    lines: list[str] = []
    for family in sorted({each["family"] for each in measured}):
        mine = [each for each in measured if each["family"] == family]
        lines += [f"| **{family}** | | | | | |"]
        for architecture in dict.fromkeys(each["architecture"] for each in mine):
            cases = [each for each in mine if each["architecture"] == architecture]
            cells = (
                f"`{architecture}`",
                worst(cases, "error"),
                "same bytes" if all(each.get("round_trip") for each in cases) else "no",
                "equal" if any(each.get("generation") for each in cases) else "",
                worst(cases, "gradient_error"),
                "; ".join(each["name"] for each in cases),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *lines])


def worst(cases: Sequence[Mapping[str, Any]], fact: str) -> str:
    """The largest over the cases, to one digit: others differ from machine to machine."""
    values = [each[fact] for each in cases if fact in each]
    return f"{max(values):.0e}" if values else ""


def main() -> int:
    """Write the table into the page; 2 where nothing was measured."""
    measured = [json.loads(path.read_text()) for path in sorted(MEASURED.glob("*.json"))]
    if not measured:
        print(f"{MEASURED}: nothing was measured: run the tests of tests/oracles first", file=sys.stderr)
        return 2
    families = len({each["family"] for each in measured})
    said = f"{families} families, {len(measured)} configurations.\n\n{table(measured)}"
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{said}\n\n{END}", page, flags=re.DOTALL))
    print(f"{PAGE}: {families} families, {len(measured)} configurations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
