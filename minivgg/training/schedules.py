"""Learning-rate schedules: from how far training has come (in epochs, a fraction counts) to a factor for the rate."""

import math
from dataclasses import dataclass

from minivgg.errors import BadInput, check_range
from minivgg.training.config import check_setting


@dataclass
class Schedule:
    """A factor of one, for ever, after a linear warm-up over the first `warmup` epochs (Goyal et al. 2017, §2.2)."""

    epochs: float
    warmup: float = 0.0

    def __post_init__(self):
        check_range(f"{type(self).__name__}: epochs", self.epochs, 0, math.inf)
        check_setting("warmup", self.warmup, f"{type(self).__name__}: ")

    def __call__(self, epoch: float) -> float:
        """The factor at `epoch`, of which there are `epochs`."""
        return min(1.0, epoch / self.warmup) if epoch < self.warmup else self.factor(epoch)

    def factor(self, epoch: float) -> float:
        """The factor once warm."""
        return 1.0

    def observe(self, error: float) -> None:
        """Told the test error after each epoch; only `Plateau` listens."""

    def state(self) -> dict:
        """What a resumed run must know, for `restore`."""
        return {}

    def restore(self, state: dict) -> None:
        """Go on from what `state` returned. Raises BadInput for what it cannot have returned."""
        if state.keys() != self.state().keys():
            raise BadInput(f"the state of a {type(self).__name__} holds {', '.join(self.state()) or 'nothing'}")
        for name, value in state.items():
            if value != math.inf:  # the best error, before there is one
                check_range(name, value, 0, math.inf, integer=isinstance(getattr(self, name), int))
        vars(self).update(state)


@dataclass
class Step(Schedule):
    """Divided by ten at one half and at three quarters of the way (He et al. 2016, §4.2)."""

    def factor(self, epoch):
        return 0.1 ** sum(epoch >= share * self.epochs for share in (0.5, 0.75))


@dataclass
class Cosine(Schedule):
    """Half a cosine, from one down to zero (Loshchilov & Hutter 2017, eq. 5)."""

    def factor(self, epoch):
        return (1 + math.cos(math.pi * (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9))) / 2


@dataclass
class Plateau(Schedule):
    """Divided by ten whenever the error has not fallen for `patience` epochs (Simonyan & Zisserman 2015, §3.1)."""

    patience: int = 3
    best: float = math.inf
    waited: int = 0
    drops: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_range("Plateau: patience", self.patience, 1, math.inf, integer=True)

    def factor(self, epoch):
        return 0.1**self.drops

    def observe(self, error):
        if error < self.best:
            self.best, self.waited = error, 0
        else:
            self.waited += 1
            if self.waited >= self.patience:
                self.waited, self.drops = 0, self.drops + 1

    def state(self):
        return {"best": self.best, "waited": self.waited, "drops": self.drops}


SCHEDULES = {"constant": Schedule, "step": Step, "cosine": Cosine, "plateau": Plateau}


def schedule(name: str, epochs: float, warmup: float = 0.0) -> Schedule:
    """The schedule called `name`. Raises BadInput for another name."""
    if name not in SCHEDULES:
        raise BadInput(f'no schedule "{name}"; there are {", ".join(SCHEDULES)}')
    return SCHEDULES[name](epochs, warmup)
