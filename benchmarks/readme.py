"""Put what a script measured into the README, or another page, between the markers that bear its name."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def fill(name: str, text: str, page: Path = README) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`; ValueError if they are not there."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    content = page.read_text()
    if not pattern.search(content):
        raise ValueError(f"{page}: no markers <!-- {name} --> … <!-- /{name} -->")
    page.write_text(pattern.sub(lambda m: f"{m[1]}{text.rstrip()}\n{m[2]}", content))


def table(head: list[str], rows: list[list[str]], right: int = 1) -> str:
    """A Markdown table, aligned in the source too; columns from `right` on are flushed right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells):
        padded = (c.ljust(w) if i < right else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = (("-" * w if i < right else "-" * (w - 1) + ":") for i, w in enumerate(widths))
    return "\n".join([line(head), f"| {' | '.join(rule)} |", *map(line, rows)])
