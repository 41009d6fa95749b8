"""The VGG family in one table of the README: parameters, arithmetic, memory and receptive field, from the ledger.

python benchmarks/family.py
"""

from readme import fill, table

from minivgg.insight.ledger import human, ledger
from minivgg.models import build


def main() -> None:
    head = ["configuration", "weight layers", "parameters", "with batch norm", "GMAC", "activations", "sees"]
    rows = []
    for letter in ("A", "A-LRN", "B", "C", "D", "E"):
        book = ledger(build(letter, init="zeros"), (1, 3, 224, 224))
        rows.append(
            [
                letter,
                str(sum(row.macs > 0 for row in book.rows)),
                f"{book.parameters:,}",
                f"{build(letter, batch_norm=True, init='zeros').parameter_count():,}",
                f"{book.macs / 1e9:.3f}",
                human(book.activation_bytes, 1024, "B"),
                f"{book.receptive_field} px",
            ]
        )
    fill("family", table(head, rows))


if __name__ == "__main__":
    main()
