"""`minivgg bugs`: the zoo of planted bugs, and what the gradient check says of each."""

from pathlib import Path


def add(commands) -> None:
    command = commands.add_parser(
        "bugs",
        help="list the planted bugs of the zoo; show NAME runs the gradient check on one",
        description="List the bugs that can be planted in minivgg: name, operation, and what is wrong. "
        "`minivgg bugs show NAME` plants one, runs the gradient check, and prints what it finds.",
    )
    command.set_defaults(command=run)
    show = command.add_subparsers(title="commands", metavar="COMMAND").add_parser(
        "show", help="plant one bug and print the report of the gradient check"
    )
    show.add_argument("name", metavar="NAME", help="a bug of the list")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="of the numbers it is checked on (default: 0)")
    show.add_argument("--picture", type=Path, metavar="FILE", help="save the picture of the wrong gradient")
    show.set_defaults(command=run_show)


def run(arguments) -> None:
    from minivgg.gradcheck.zoo import ZOO

    rows = [("NAME", "IN", "WHAT IS WRONG"), *((bug.name, bug.op, bug.says) for bug in ZOO.values())]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    print("\n".join(f"{name:{widths[0]}}  {op:{widths[1]}}  {says}" for name, op, says in rows))
    print(f"\n{len(ZOO)} bugs. See one with: minivgg bugs show {next(iter(ZOO))} --picture bug.png")


def run_show(arguments) -> None:
    import difflib

    import numpy as np

    from minivgg.errors import BadInput
    from minivgg.gradcheck.zoo import ZOO

    if arguments.seed < 0:
        raise BadInput(f"--seed must not be negative, got {arguments.seed}")
    if arguments.name not in ZOO:
        close = difflib.get_close_matches(arguments.name, ZOO, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else "`minivgg bugs` lists them"
        raise BadInput(f'no bug "{arguments.name}"; {hint}')
    bug = ZOO[arguments.name]
    print(f"{bug.name} ({bug.op}): {bug.says}\n")
    if bug.rule:
        print(f"No gradient shows it. Another rule does, that {bug.caught_by}: {bug.seen(arguments.seed)}")
    if bug.rule and not arguments.picture:
        return
    with bug.plant(), np.errstate(all="ignore"):
        report = bug.case.check(arguments.seed)
        if not bug.rule:
            print(report)
        if arguments.picture:
            _draw(report, arguments.picture)


def _draw(report, path: Path) -> None:
    """Save the report's picture, while the bug is planted: it measures again."""
    from minivgg.errors import BadInput
    from minivgg.insight import pictures

    try:
        figure = report.plot()
    except ValueError as error:
        raise BadInput(f"there is no picture of this one: {error}") from error
    pictures.save(figure, path)
    print(f"\nsee {path}")
