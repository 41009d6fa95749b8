"""VGG-16 as a whole on a GPU: forward passes and training steps, ours beside PyTorch's, with peak memory."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial

import numpy as np

from minivgg.backends.array import to
from minivgg.backends.graph import Recording
from minivgg.bench import gpu, pytorch
from minivgg.bench.race import check, heat
from minivgg.bench.record import best_rival, error, judge
from minivgg.bench.vgg import RATE, Task, needs, scores
from minivgg.errors import BadInput
from minivgg.insight.ledger import ledger
from minivgg.layers import Layer
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_backward, softmax_cross_entropy_forward
from minivgg.progress import tqdm
from minivgg.training.graph import WARM_UP
from minivgg.training.optim import SGD

TASKS = (
    Task("forward", 224, 1),
    Task("forward", 224, 32),
    Task("forward", 224, 64),
    Task("step", 224, 32),
    Task("step", 32, 128, classes=10),
)
WRONG = {"fp32": 1e-4, "tf32": 1e-2}  # of the scores of one image: sixteen layers deep errors add up


def ours(task: Task, precision: str, *, frozen: bool = False, graphs: bool = False) -> gpu.Task:
    """A forward or a training step of minivgg, its batch on the GPU already; the step as CUDA graphs, if `graphs`."""
    model = task.model().to("gpu")
    x, labels = (to(a, "gpu") for a in task.data())
    if task.what == "forward":
        model = model.freeze() if frozen else model
        return gpu.Task(lambda i: model.forward(x), partial(_verdict, task, lambda: model.forward(x)[:1].get()))
    optimizer = SGD(model.named_params())

    def step(i: int) -> None:
        model.zero_grad()
        _, cache = softmax_cross_entropy_forward(model.forward(x, train=True), labels)
        model.backward(softmax_cross_entropy_backward(1, cache), need_dx=False)
        optimizer.step(RATE)

    if not graphs:
        return gpu.Task(step, dict)
    for i in range(WARM_UP):
        step(i)
    recorded = Recording(lambda: step(WARM_UP))
    return gpu.Task(lambda i: recorded.replay(), dict)


def theirs(task: Task, precision: str, *, channels_last: bool = False, compiled: bool = False) -> gpu.Task:
    """The same of PyTorch: the same network, weights and data."""
    import torch

    pytorch.set_precision(precision)
    order = torch.channels_last if channels_last else torch.contiguous_format
    net = pytorch.network(task.model(), channels_last=channels_last, compiled=False).cuda()
    run = torch.compile(net) if compiled else net
    x, labels = (torch.from_numpy(a).cuda() for a in task.data())
    x = x.contiguous(memory_format=order)
    if task.what == "forward":
        net.eval()

        @torch.inference_mode()
        def forward(i: int = 0):
            return run(x)

        return gpu.Task(forward, partial(_verdict, task, lambda: forward()[:1].cpu().numpy()))
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, fused=True)

    def step(i: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(run(x), labels).backward()
        optimizer.step()

    return gpu.Task(step, dict)


def _verdict(task: Task, first: Callable[[], np.ndarray]) -> dict:
    """The error of the first image's scores against float64, on the CPU."""
    return {"error": error(first(), scores(task, images=1))}


def contestants(what: str) -> tuple[dict[str, Callable], list[str]]:
    """Name → task for "forward" or "step", as far as this machine has them, and a line for each that it lacks."""
    tasks, lacks = {}, []
    if hasattr(Layer, "to"):
        tasks["minivgg"] = ours
        if what == "forward":
            tasks["minivgg frozen"] = partial(ours, frozen=True)
        else:
            tasks["minivgg graphs"] = partial(ours, graphs=True)
    else:
        lacks.append("this minivgg's layers do not move to a GPU")
    if reason := pytorch.why_not("cuda"):
        lacks.append(reason)
    else:
        tasks["PyTorch NCHW"] = theirs
        tasks["PyTorch channels last"] = partial(theirs, channels_last=True)
        tasks["PyTorch compiled"] = partial(theirs, channels_last=True, compiled=True)
    return tasks, lacks


def run(
    *,
    machine: dict,
    precisions: tuple[str, ...] = tuple(WRONG),
    samples: int = 5,
    turn: float = 0.2,
    seconds: float = 5,
    tasks: tuple[Task, ...] = TASKS,
    progress: bool = True,
) -> dict:
    """Race `contestants` on each of `tasks`, in strict float32 and with TF32; returns the record. Raises BadInput for
    settings that make no race, and where there is no GPU."""
    check(samples, seconds)
    for name in precisions:
        if name not in WRONG:
            raise BadInput(f'no precision "{name}" for networks; there are {", ".join(WRONG)}')
    gpu.check()
    settings = {"samples": samples, "turn": turn, "seconds": seconds}
    found = gpu.measure_limits()
    heats = [(precision, task) for precision in precisions for task in tasks]
    with tqdm(heats, "racing", disable=not progress, unit="heat") as bar:
        rows = [
            {"precision": precision, "task": task.name, **asdict(task)}
            | _row(task, precision, found, settings, _teller(bar, task, precision))
            for precision, task in bar
        ]
    lacks = list(dict.fromkeys(reason for task in tasks for reason in contestants(task.what)[1]))
    return gpu.record("vgg_gpu", machine, settings, found, lacks, rows)


def _teller(bar, task: Task, precision: str) -> Callable[[str], None]:
    return lambda doing: bar.set_postfix_str(f"{precision} {task.name}: {doing}")


def _row(task: Task, precision: str, limits: dict, settings: dict, tell) -> dict:
    """One heat. Its contestants have processes of their own, so that none inherits the memory of the heat before."""
    needed = needs(task, ledger(task.model(init="zeros"), (task.batch, 3, task.size, task.size)))
    least = gpu.least_seconds(needed["flop"], needed["nbytes"], limits, precision)
    times = {name: settings[name] for name in ("samples", "turn", "seconds")}
    with ExitStack() as stack:
        entries = {
            name: (stack.enter_context(gpu.worker_for(name)), partial(make, task, precision))
            for name, make in contestants(task.what)[0].items()
        }
        results, _ = heat(entries, value=True, progress=tell, alone=True, **times)
    rival = best_rival(results)
    judged = {
        name: judge(result, needed["flop"], least, rival, (result.value or {}).get("error"), WRONG[precision])
        for name, result in results.items()
    }
    return {"flop": needed["flop"], "bytes": needed["nbytes"], "results": judged}
