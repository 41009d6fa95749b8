"""Which of the things that a training script saved are the weights? What lies beside them is described, never refused.

A file has a state dict by itself, one under a name such as "state_dict", among epochs, arguments and optimisers, a
second one of averaged weights, or a whole module. A state dict is known by its tensors under names.
"""

from minivgg.errors import BadInput
from minivgg.weights.entries import MAX_ARRAYS
from minivgg.weights.pickle_machine import Opaque, Tensor, described

# What scripts call the weights, the likeliest first
_NAMES = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params")
_NOT_WEIGHTS = ("optim", "sched", "scaler", "rng", "callback", "loop", "args", "hyper", "config", "metric", "history")
_DEPTH = 4  # of dicts in dicts
_MAX_OBJECTS = 50  # that may be modules, each of which is gone through

ANOTHER = "another state dict"

Tensors = dict[str, Tensor]


def choose(built, part: str | None = None) -> tuple[Tensors, dict[str, str]]:
    """The tensors of the state dict in what a pickle built, and a word on each thing beside them, by its name.

    Where there are several state dicts, that called `part`, or one with the name that scripts give the weights. Raises
    BadInput where there is none, where several may be meant, and where one of its arrays is no plain tensor.
    """
    sets = _sets(built)
    if part is not None and part not in sets:
        raise BadInput(f"no set of weights {part!r} in it; there {_are(sets)}")
    if not sets:
        holds = ", ".join(str(key)[:50] for key in list(built)[:5]) if isinstance(built, dict) else described(built)
        raise BadInput(f"no state dict of named tensors in it, but {holds or 'nothing'}; nothing was run")
    name = _likeliest(sets) if part is None else part
    chosen = sets[name]
    for key, value in chosen.items():
        if isinstance(value, Opaque) and "." in key and not key.endswith("_extra_state"):
            raise BadInput(f"{key[:100]} is what {value} would give, no plain tensor; nothing was run")
    tensors = {key: value for key, value in chosen.items() if isinstance(value, Tensor)}
    if len(tensors) > MAX_ARRAYS:
        raise BadInput(f"{len(tensors):,} arrays; more than {MAX_ARRAYS:,} are refused")
    beside = {key: f"{ANOTHER}, {_count(other)} arrays" for key, other in sets.items() if key not in ("", name)}
    for key, value in _contents(built).items():
        if not (name == "" and key in tensors) and not f"{name}.".startswith(f"{key}."):
            beside.setdefault(str(key)[:100], described(value))
    return tensors, beside


def _contents(thing) -> dict:
    """What a dict, an object like one, or a module holds by names, and a list its dicts by their numbers; of anything
    else nothing."""
    if isinstance(thing, Opaque):
        return thing.items or _module(thing)
    if isinstance(thing, (list, tuple)):
        return {str(i): value for i, value in enumerate(thing[:_MAX_OBJECTS]) if isinstance(value, (dict, Opaque))}
    return thing if isinstance(thing, dict) else {}


def _sets(built) -> dict[str, dict]:
    """The dicts with named tensors in what a pickle built, by the dotted name of their place; "" is the whole."""
    found, waiting, seen, objects = {}, [("", built)], set(), 0
    for place, thing in waiting:  # which grows
        objects += isinstance(thing, Opaque)
        if id(thing) in seen or len(seen) > MAX_ARRAYS or (isinstance(thing, Opaque) and objects > _MAX_OBJECTS):
            continue
        seen.add(id(thing))
        holds = _contents(thing)
        named = [key for key, value in holds.items() if isinstance(value, Tensor)]
        if named and all(isinstance(key, str) for key in named):
            found[place] = {key: value for key, value in holds.items() if isinstance(key, str)}
        for key, value in holds.items():
            if not isinstance(key, str) or not isinstance(value, (dict, list, tuple, Opaque)):
                continue
            full = f"{place}.{key}".lstrip(".")
            if full.count(".") < _DEPTH and not any(word in key.lower() for word in _NOT_WEIGHTS):
                waiting.append((full, value))
    return found


def _likeliest(sets: dict[str, dict]) -> str:
    """The set of weights that is meant, if that is clear."""
    if len(sets) == 1:
        return next(iter(sets))
    most = max(map(_count, sets.values()))
    called = {wanted: [place for place in sets if place.rpartition(".")[2] == wanted] for wanted in _NAMES}
    named = next((places for places in called.values() if places), [])
    outer = [place for place in named if place.count(".") == min(other.count(".") for other in named)]
    if "" in sets and _count(sets[""]) == most and (not named or any("." in key for key in sets[""])):
        return ""
    if len(outer) == 1:
        return outer[0]
    large = [place for place, holds in sets.items() if _count(holds) == most and "ema" not in place.lower()]
    if not named and len(large) == 1 and all(_count(holds) < 2 for place, holds in sets.items() if place != large[0]):
        return large[0]
    raise BadInput(
        f"several sets of weights, and not one called state_dict; say which part to take: there {_are(sets)}"
    )


def _count(holds: dict) -> int:
    return sum(isinstance(value, Tensor) for value in holds.values())


def _are(sets: dict[str, dict]) -> str:
    shown = ", ".join(f"{place[:60]!r} ({_count(holds)} arrays)" for place, holds in list(sets.items())[:6])
    return f"are {shown}" if len(sets) > 1 else f"is {shown}" if sets else "is none"


def _module(thing: Opaque) -> dict:
    """The state dict of a module that was saved whole, by what its attributes have in PyTorch."""
    found, waiting = {}, [("", thing)]
    for count, (prefix, module) in enumerate(waiting):  # which grows
        state = module.state if isinstance(module, Opaque) and count < MAX_ARRAYS else {}
        for kind in ("_parameters", "_buffers"):
            own = state.get(kind)
            found |= {f"{prefix}{key}": v for key, v in _contents(own).items() if v is not None}
        inner = _contents(state.get("_modules"))
        waiting += [(f"{prefix}{key}.", child) for key, child in inner.items() if prefix.count(".") < 20]
    return found
