"""Parameters and multiply-adds of every network beside the figures of its sheet, counted without allocating weights.

python -m benchmarks.model_table > docs/models.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.sheet_figures import COUNTS, GMACS
from seg_models import describe_model

COMMAND = "python -m benchmarks.model_table > docs/models.md"
INTRODUCTION = f"""# Models

`segray models` lists every name. Both tables are written by `{COMMAND}`; the contracts
(`pytest tests/contracts`) hold parameters equal and multiply-adds within 0.5 % of the sheet. Multiply-adds are those of
convolutions and matrix products, and ours include upsampling and pooling where they are written as matrix products.
OCRNet and CondNet have no sheet: theirs are sums over the layers of the published configurations, without upsampling.
Parameters of prediction include branches that only training classifies by (DANet), as the literature counts them.
No sheet counts VT-FPN, FaPN, AlignSeg and what FastFCN's upsampling is compared with: theirs are the layers of the
paper or of the authors' code.
"""


def parameters() -> Iterator[tuple[str, ...]]:
    """Rows of the first table."""
    for name, classes, main, aux in COUNTS:
        info = describe_model(name, num_classes=classes, size=(64, 64))
        found = (f"{info.params_main:,}", f"{info.params_aux:,}")
        yield f"`{name}`", str(classes), found[0], f"{main:,}", found[1], f"{aux:,}"


def multiply_adds() -> Iterator[tuple[str, ...]]:
    """Rows of the second table."""
    for name, classes, (height, width), gmac in GMACS:
        found = describe_model(name, num_classes=classes, size=(height, width)).gmac
        yield f"`{name}`", str(classes), f"{height}×{width}", f"{found:.2f}", f"{gmac:g}", f"{found / gmac - 1:+.2%}"


def table(columns: Sequence[str], rows: Iterator[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def main() -> None:
    """Print the page."""
    print(INTRODUCTION)
    print(table(("model", "classes", "parameters", "sheet", "auxiliary heads", "sheet"), parameters()))
    print()
    print(table(("model", "classes", "input", "GMAC", "sheet", "difference"), multiply_adds()))


if __name__ == "__main__":
    main()
