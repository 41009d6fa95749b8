"""The exercises of the tutorials: what a learner writes, and what it is held to.

    from minivgg.exercises import check_exercise

    check_exercise("01.1", linear_forward, linear_backward)     # in a notebook: your functions, in the order asked for

    minivgg check 01.1 --file mine.py                           # the same from a file that defines them
    minivgg check                                               # the list, and what is done

The learner's code is run, never ours: it takes the place of a row of the conformance suite's table, and is held to its
rules. The answer is a `Verdict`: what is wrong, on which shapes, what kind of mistake it looks like, and where to look
next. How it is written does not matter: loops, einsum, other names, other caches are all right.

`table` holds the exercises as data, a row each; `checks`, `checks_of_networks`, `checks_of_using`, `counting` and, for
CUDA C, `kernels` what a row can be held to; `verdict` runs and tells; `progress` remembers.
"""

from minivgg.exercises.progress import progress
from minivgg.exercises.table import EXERCISES, Exercise
from minivgg.exercises.verdict import Verdict, check_exercise, check_file

__all__ = ["EXERCISES", "Exercise", "Verdict", "check_exercise", "check_file", "progress"]
