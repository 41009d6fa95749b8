"""`minivgg check`: the tutorials' exercises. Runs a learner's code, and says what is wrong."""

from pathlib import Path


def add(commands) -> None:
    command = commands.add_parser(
        "check",
        help="check an exercise of the tutorials: your code is run, and what is wrong is said",
        description="`minivgg check 01.1 --file mine.py` runs the functions that mine.py defines, and says whether "
        "they are right, or what kind of wrong. Without arguments: the list of exercises, and what is done. Exit "
        "status: 0 right, 1 not right yet, 2 bad input.",
    )
    command.add_argument("exercise", nargs="?", metavar="ID", help="an exercise of the list, such as 01.1")
    command.add_argument("--file", type=Path, metavar="PY", help="a Python file that defines the functions asked for")
    command.add_argument("--picture", type=Path, metavar="FILE", help="save the picture of a wrong gradient")
    command.set_defaults(command=run)


def run(arguments) -> int:
    from minivgg.errors import BadInput
    from minivgg.exercises import EXERCISES
    from minivgg.exercises.apart import check_file_apart

    if arguments.exercise is None:
        if arguments.file or arguments.picture:
            raise BadInput("which exercise? Give its ID: minivgg check 01.1 --file mine.py")
        print(overview())
        return 0
    if arguments.file is None:
        row = EXERCISES.get(arguments.exercise)
        names = f" that defines {', '.join(row.functions)}" if row else ""
        raise BadInput(f"which file? Give one{names}: minivgg check {arguments.exercise} --file mine.py")
    right, text = check_file_apart(arguments.exercise, arguments.file, arguments.picture)
    print(text)
    return 0 if right else 1


def overview() -> str:
    """The exercises, a line each, with what the learner has done of them."""
    from minivgg.exercises import EXERCISES, progress
    from minivgg.exercises.progress import progress_file

    done = progress()
    names = {row.id: ", ".join(row.functions) for row in EXERCISES.values()}
    titles, functions = (
        max(map(len, column)) for column in ([row.title for row in EXERCISES.values()], names.values())
    )
    lines = []
    for row in EXERCISES.values():
        tried = done.get(row.id, {"tries": 0, "right": None})
        mark, state = "·", f"tried {tried['tries']}×" if tried["tries"] else ""
        if tried["right"]:
            mark, state = "✓", f"right since {tried['right']}"
        lines.append(f"{mark} {row.id}  {row.title:{titles}}  {names[row.id]:{functions}}  {state}".rstrip())
    right = sum(bool(done.get(name, {}).get("right")) for name in EXERCISES)
    return "\n".join([*lines, "", f"{right} of {len(EXERCISES)} done, as {progress_file()} remembers"])
