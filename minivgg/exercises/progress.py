"""What a learner has done, in one small file: exercise → how often tried, and when it was first right.

The file is `$MINIVGG_EXERCISES`, else `~/.local/share/minivgg/exercises.json`: of a person, not of a folder, so that a
notebook and a terminal see the same. It is written whole or not at all. To begin again, delete it.
"""

import datetime
import json
import os
from pathlib import Path

from minivgg.errors import BadInput
from minivgg.files import atomically


def progress_file() -> Path:
    """Where it is kept. It may not exist yet."""
    return Path(os.environ.get("MINIVGG_EXERCISES") or "~/.local/share/minivgg/exercises.json").expanduser()


def progress() -> dict[str, dict]:
    """Exercise → {"tries": how often, "right": the date or None}. Raises BadInput if the file is something else."""
    path = progress_file()
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}); mend it, or delete it to begin again") from error
    entries = done.values() if isinstance(done, dict) else [None]
    if not all(isinstance(entry, dict) and {"tries", "right"} <= entry.keys() for entry in entries):
        raise BadInput(f"{path}: not a record of exercises; delete it to begin again")
    return done


def record(exercise: str, right: bool) -> None:
    """Count a try; what was right once stays so."""
    done = progress()
    before = done.get(exercise, {"tries": 0, "right": None})
    today = datetime.date.today().isoformat() if right else None
    done[exercise] = {"tries": before["tries"] + 1, "right": before["right"] or today}
    with atomically(progress_file()) as temporary:
        temporary.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n", encoding="utf-8")
