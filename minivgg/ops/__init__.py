"""Arithmetic: pure functions, `<name>_forward(x, …) -> (y, cache)` beside `<name>_backward(dy, cache) -> gradients`.

No layer, no state, no autograd. The cache of a forward holds what its backward needs and no more.
"""
