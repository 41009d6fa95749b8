"""The zoo: named bugs to be planted in minivgg, each a mistake that somebody has made, and each caught.

    from minivgg.gradcheck.zoo import ZOO

    print(ZOO["relu-mask-inverted"].says)           # what is wrong
    with ZOO["relu-mask-inverted"].plant():         # minivgg has the bug: every layer and every network that uses ReLU
        ...
    print(ZOO["relu-mask-inverted"].check(seed=0))  # what the gradient check says of it

A bug is a function that takes the place of a real one: its name is the bug's, its docstring explains it. Bugs are kept
by family: `conv2d`, `fast`, `pooling`, `elementwise`, `norms`, `losses`, `layers`. `bug` says how one is planted,
`cases` what the check is run on (also those that are right, and must not be complained of), and `oracles` holds rules
for the few that no gradient can show, because forward and backward make the same mistake.
"""

from minivgg.gradcheck.zoo import conv2d, elementwise, fast, layers, losses, norms, pooling  # noqa: F401, they fill ZOO
from minivgg.gradcheck.zoo.bug import ZOO, Bug
from minivgg.gradcheck.zoo.cases import EVERYDAY, RIGHT, Case

__all__ = ["EVERYDAY", "RIGHT", "ZOO", "Bug", "Case"]
