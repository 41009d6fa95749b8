"""A gradient check that finds the mistake, says what kind it is, and raises no false alarms.

A backward is right if, for any direction v, what it says about the slope of forward is what forward does:

    ⟨backward(dy), v⟩  =  ( ⟨dy, forward(x + h·v)⟩ − ⟨dy, forward(x − h·v)⟩ ) / 2h  +  an error that we can bound

So write a forward and a backward, and hand them over:

    from minivgg.gradcheck import check

    def forward(x, w):
        return x @ w, (x, w)                  # y, and a cache of what backward needs

    def backward(dy, cache):
        x, w = cache
        return dy @ w.T, x.T @ dy             # one gradient for each array, in order

    report = check((forward, backward), x, w)
    print(report)                             # a table; in a notebook, the report shows itself
    report.plot("report.png")                 # where it is wrong, at which step, and how it shrinks
    report.raise_if_failed()                  # in a test

A `Layer`, a `Sequential`, a whole network with its loss (`check(model, x, labels=labels)`) and a class with methods
`forward` and `backward` work as well: see `check`.

What usual gradient checks miss, and why this one does not:

- *an upstream gradient of ones* passes a softmax whose backward is 7 times too large, since its rows sum to one
  whatever the input: here dy is random and of both signs, and a constant one is refused;
- *a few elements, a loose tolerance* miss one wrong border, one channel, one part in 10⁴: here every direction has
  all elements in it, and the tolerance is computed from the rounding that forward shows and the step (`numeric`);
- *kinks* (ReLU, max-pool) raise false alarms: here they are recognised by the branches taken (`kinks`);
- *anything about calls*: written-over inputs, a shared or stale cache, gradients that overwrite (`invariants`).

To read the rooms in order: `targets` (one face for all that can be checked), `numeric` (slopes and their error),
`kinks` (one probe), `examine` (one argument), `invariants`, `check`; then, for what is wrong, `inquest`, `diagnosis`,
`report` and `picture`.
"""

from minivgg.gradcheck.check import check
from minivgg.gradcheck.report import Report

__all__ = ["Report", "check"]
