"""A learner's file in a process of its own: whatever it does there, the verdict on it is spoken here.

An answer may call `os._exit(0)`, or crash the interpreter; a process that ends without having said "right" was not.
"""

import json
import multiprocessing
from pathlib import Path

from minivgg.errors import BadInput
from minivgg.exercises.progress import record
from minivgg.exercises.verdict import check_file, exercise_row


def check_file_apart(exercise: str, path: Path, picture: Path | None = None) -> tuple[bool, str]:
    """Whether the functions that a file defines are right, and what `check_file` says of them. `picture`: where the
    wrong gradient is drawn.

    Cost: a second more than `check_file`, to start Python. Raises BadInput as that does, and where there is nothing to
    draw.
    """
    row = exercise_row(exercise)
    context = multiprocessing.get_context("spawn")  # not a copy of this process, whose threads a copy would lack
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, exercise, path, picture), daemon=True)
    process.start()
    sender.close()
    try:
        answer = json.loads(receiver.recv_bytes())
    except EOFError:
        process.join()
        record(exercise, False)
        how = f"status {process.exitcode}" if process.exitcode >= 0 else f"signal {-process.exitcode}"
        return False, f"✗ {row.id} {row.title}: not right yet\n\nIt ended Python ({how}) before an answer was there."
    finally:
        process.kill()  # it may have left threads behind
        process.join()
    if answer["bad"]:
        raise BadInput(answer["bad"])
    return answer["right"], answer["text"]


def _answer(sender, exercise: str, path: Path, picture: Path | None) -> None:
    answer = {"right": False, "text": "", "bad": ""}
    try:
        verdict = check_file(exercise, path)
        answer |= {"right": verdict.ok, "text": str(verdict)}
        if picture is not None:
            from minivgg.insight import pictures

            pictures.save(verdict.plot(), picture)
            answer["text"] += f"\n\nsee {picture}"
    except (BadInput, OSError) as error:
        answer["bad"] = str(error)
    sender.send_bytes(json.dumps(answer).encode())
