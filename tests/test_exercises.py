"""The exercises: skeletons fail helpfully, solutions pass, a wrong answer is told what is wrong, and style is free."""

import re

import numpy as np
import pytest
from answers import MISTAKES as EARLIER_MISTAKES
from answers import STYLES as EARLIER_STYLES
from answers_06_to_08 import MISTAKES as LATER_MISTAKES
from answers_06_to_08 import STYLES as LATER_STYLES
from answers_09 import MISTAKES as USING_MISTAKES
from answers_09 import STYLES as USING_STYLES
from answers_10_and_11 import MISTAKES as LAST_MISTAKES
from answers_10_and_11 import STYLES as LAST_STYLES
from tutorial_files import TUTORIALS, build

from minivgg.cli.main import main
from minivgg.errors import BadInput
from minivgg.exercises import EXERCISES, check_exercise, check_file, progress
from minivgg.exercises.progress import progress_file, record
from minivgg.gradcheck.zoo import ZOO
from minivgg.ops.batchnorm import batchnorm_backward, batchnorm_forward
from minivgg.ops.conv2d import im2col
from minivgg.ops.dropout import dropout_backward, dropout_forward
from minivgg.ops.linear import linear_backward, linear_forward
from minivgg.ops.maxpool import maxpool2d_backward, maxpool2d_forward
from minivgg.ops.relu import relu_backward, relu_forward
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_backward, softmax_cross_entropy_forward

MISTAKES = EARLIER_MISTAKES + LATER_MISTAKES + USING_MISTAKES + LAST_MISTAKES
STYLES = EARLIER_STYLES + LATER_STYLES + USING_STYLES + LAST_STYLES
SOLUTIONS = {name: code for source in build.SOURCES for name, code in build.solutions(source).items()}
each = pytest.mark.parametrize("exercise", EXERCISES)


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVGG_EXERCISES", str(tmp_path / "state" / "exercises.json"))


@pytest.fixture
def answer(tmp_path):
    """A function: code → the verdict on it, as a learner's file."""

    def verdict(exercise, code):
        path = tmp_path / "mine.py"
        path.write_text(f"import numpy as np\n\n{code}\n", encoding="utf-8")
        return check_file(exercise, path)

    return verdict


@each
def test_a_solution_is_right(exercise, answer):
    verdict = answer(exercise, SOLUTIONS[exercise])
    assert verdict.ok, verdict
    assert str(verdict).startswith(f"✓ {exercise} ")
    assert progress()[exercise]["right"]


@each
def test_a_skeleton_says_what_to_write(exercise):
    skeleton = next(TUTORIALS.glob(f"exercises/{exercise[:2]}_*.py"))
    verdict = check_file(exercise, skeleton)
    text = str(verdict)
    assert not verdict.ok
    assert text.startswith(f"… {exercise} ") and "not yet" in text
    assert "NotImplementedError in" in text and "that is where your code goes" in text
    assert all(name in text for name in EXERCISES[exercise].functions)
    assert progress()[exercise] == {"tries": 1, "right": None}


# ---- The zoo ----


FUNCTIONS = {
    "01.1": (linear_forward, linear_backward),
    "01.3": (softmax_cross_entropy_forward, softmax_cross_entropy_backward),
    "03.1": (relu_forward, relu_backward),
    "03.2": (dropout_forward, dropout_backward),
    "05.1": (im2col.grad_weight,),
    "05.2": (im2col.grad_input,),
    "06.1": (maxpool2d_forward, maxpool2d_backward),
    "06.2": (batchnorm_forward, batchnorm_backward),
}
ELSEWHERE = {  # they ask for an option that the exercise does not have: smoothing, padding, given statistics
    "cross-entropy-smoothing-ignored",
    "maxpool-padding-forgotten",
    "batchnorm-given-statistics-as-the-batchs",
    "batchnorm-batch-statistics-at-test-time",
}
# What the conformance suite calls that which the gradient check, on its own, has other words for
IN_OTHER_WORDS = {
    "dy = 0 gives a gradient of scores that is not 0": "dy = 0 gives 0",
    "backward spoils its cache: called twice, scores": "twice the same gives the same bits",
    "nan or infinity in y": "hopeless classes have a price, too",
    "x: the mask is missing": "x: another mask",  # not all that should be zero is wrong here
    "scores: none of the known patterns": "forward computes what the formula says",
    "x written to": "arguments and dy are left alone",
    "dy written to": "arguments and dy are left alone",
    "channels-last memory gives another gradient of x": "memory order does not matter",
    "a second forward gives another y": "twice the same gives the same bits",
    "a forward with other inputs in between changes the gradient of x: the cache is shared": "a cache belongs to its",
    "b: not summed over dimension 0: the gradient is (3, 4), the argument (4,)": "found db (3, 4)",
    "bias: not summed over dimension 0: the gradient is (2, 3), the argument (3,)": "found dbias (2, 3)",
    "x: wrong only in the last rows (1 to 16 of 0 to 16), the last columns (15 to 16 of 0 to 16)": (
        "x: wrong only in row (1 of 0 to 16), column (15 of 0 to 16)"
    ),
    "the gradient of a tie went to place 3": "of equals, the first wins",
}


def planted():
    for exercise, functions in FUNCTIONS.items():
        for bug in ZOO.values():
            if bug.victim in functions and bug.name not in ELSEWHERE:
                theirs = [bug.culprit if f is bug.victim else f for f in functions]
                if exercise == "03.2":  # there the seed comes by position
                    theirs[0] = lambda x, p, seed, forward=theirs[0]: forward(x, p, seed=seed)
                yield pytest.param(exercise, theirs, bug, id=f"{exercise}-{bug.name}")


@pytest.mark.parametrize(("exercise", "functions", "bug"), list(planted()))
def test_a_bug_of_the_zoo_is_refused_and_named(exercise, functions, bug):
    verdict = check_exercise(exercise, *functions)
    assert not verdict.ok
    words = bug.shows, IN_OTHER_WORDS.get(bug.shows, bug.shows)
    assert any(same_words(expected, str(verdict)) for expected in words), verdict
    assert "next     " in str(verdict)


def same_words(expected, text):
    """Whether a diagnosis is in the text, whatever the numbers are: they depend on the shapes."""
    plain = (re.sub(r"\d+(\.\d+)?", "#", " ".join(part.split())) for part in (expected, text))
    return next(plain) in next(plain)


@pytest.mark.parametrize(("exercise", "right", "wrong", "says"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_named(exercise, right, wrong, says, answer):
    assert right in SOLUTIONS[exercise]
    verdict = answer(exercise, SOLUTIONS[exercise].replace(right, wrong))
    assert not verdict.ok
    assert says in str(verdict), verdict
    assert progress()[exercise]["right"] is None


def test_the_line_that_raises_is_shown(answer):
    verdict = answer("01.1", SOLUTIONS["01.1"].replace("dy.T @ x", "dy @ x"))
    assert re.search(r"in +linear_backward, line \d+: return dy @ w, dy @ x", str(verdict)), verdict


@pytest.mark.parametrize(("exercise", "code"), STYLES, ids=range(len(STYLES)))
def test_another_style_is_as_good(exercise, code, answer):
    verdict = answer(exercise, code)
    assert verdict.ok, verdict


def test_without_a_compiler_it_is_said_what_to_install(answer, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match=r"cannot compile here: .* no no-such-compiler: install one .*apt install g"):
        answer("11.1", SOLUTIONS["11.1"])
    assert "11.1" not in progress()


# ---- What is done ----


def test_what_was_right_stays_right(answer):
    assert answer("01.2", SOLUTIONS["01.2"]).ok
    assert not answer("01.2", "def softmax_forward(x):\n    return x").ok
    assert progress()["01.2"]["tries"] == 2
    assert progress()["01.2"]["right"]


def test_progress_is_a_small_file_written_whole(monkeypatch):
    assert progress() == {}
    record("01.1", False)
    before = progress_file().read_text()
    monkeypatch.setattr("pathlib.Path.write_text", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        record("01.2", True)
    assert progress_file().read_text() == before
    assert [path.name for path in progress_file().parent.iterdir()] == ["exercises.json"]


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"01.1": 3}', '{"01.1": {}}'])
def test_a_spoilt_file_is_said(text):
    progress_file().parent.mkdir()
    progress_file().write_text(text)
    with pytest.raises(BadInput, match="delete it to begin again"):
        progress()


# ---- The command ----


def test_the_list(capsys):
    record("01.1", True)
    record("01.2", False)
    assert main(["check"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^✓ 01\.1  .*linear_forward, linear_backward +right since \d{4}-", printed, re.MULTILINE)
    assert re.search(r"^· 01\.2  .*tried 1×$", printed, re.MULTILINE)
    assert f"1 of {len(EXERCISES)} done" in printed
    for row in EXERCISES.values():
        assert re.search(rf" {row.id}  {row.title}  +{', '.join(row.functions)}(  |$)", printed, re.MULTILINE)


def test_the_exit_status_says_whether_it_is_right(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(f"import numpy as np\n{SOLUTIONS['01.2']}")
    assert main(["check", "01.2", "--file", str(path)]) == 0
    assert "✓ 01.2" in capsys.readouterr().out
    path.write_text("def softmax_forward(x):\n    return 2 * x\n")
    assert main(["check", "01.2", "--file", str(path)]) == 1
    assert "✗ 01.2" in capsys.readouterr().out


def test_a_wrong_gradient_has_a_picture(tmp_path, capsys):
    path, picture = tmp_path / "mine.py", tmp_path / "wrong.png"
    path.write_text(f"import numpy as np\n{SOLUTIONS['01.1'].replace('dy.T @ x', '2 * dy.T @ x')}")
    assert main(["check", "01.1", "--file", str(path), "--picture", str(picture)]) == 1
    assert picture.read_bytes()[:4] == b"\x89PNG"
    path.write_text(f"import numpy as np\n{SOLUTIONS['01.1']}")
    assert main(["check", "01.1", "--file", str(path), "--picture", str(picture)]) == 2
    assert "no wrong gradient to draw" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["99.9"], "", 'no exercise "99.9"; there are 01.1'),
        (["01.1"], "x = 1", "no function linear_forward and no linear_backward in it"),
        (["01.1"], "def linear_forward(x:\n", "line 1: SyntaxError"),
        (["01.1"], "\n\n1 / 0", "line 3: ZeroDivisionError"),
        (["01.1"], "raise SystemExit(3)", "SystemExit"),
    ],
)
def test_bad_files(arguments, code, says, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(code)
    assert main(["check", *arguments, "--file", str(path)]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "01.1"], "which file? Give one that defines linear_forward, linear_backward"),
        (["check", "01.1", "--file", "nowhere.py"], "nowhere.py: no such file"),
        (["check", "--file", "mine.py"], "which exercise?"),
    ],
)
def test_bad_arguments(arguments, says, capsys):
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


def test_functions_are_counted():
    with pytest.raises(BadInput, match="takes 2: linear_forward, linear_backward"):
        check_exercise("01.1", np.add)


# ---- Answers that end the program ----

LEAVING = {
    "sys.exit": "import sys\ndef softmax_forward(x):\n    sys.exit()",
    "sys.exit(0) after some right answers": (
        "import sys\ncalls = []\ndef softmax_forward(x):\n    calls.append(x)\n"
        "    e = np.exp(x - x.max(1, keepdims=True))\n"
        "    return sys.exit(0) if len(calls) > 3 else e / e.sum(1, keepdims=True)"
    ),
    "quit": "def softmax_forward(x):\n    raise SystemExit",
    "a BaseException of one's own": "class Stop(BaseException): pass\ndef softmax_forward(x):\n    raise Stop",
}


@pytest.mark.parametrize("code", LEAVING.values(), ids=LEAVING)
def test_an_answer_that_leaves_is_not_right(code, answer):
    verdict = answer("01.2", code)
    assert not verdict.ok
    assert "It ends the program" in str(verdict) and "in softmax_forward, line" in str(verdict)
    assert progress()["01.2"] == {"tries": 1, "right": None}


ENDING = LEAVING | {
    "os._exit(0)": "import os\ndef softmax_forward(x):\n    os._exit(0)",
    "os._exit(0) in the file": "import os\nos._exit(0)",
    "os._exit(0) at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef softmax_forward(x):\n    return x",
    "a signal": "import os, signal\ndef softmax_forward(x):\n    os.kill(os.getpid(), signal.SIGSEGV)",
    "a thread that stays": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
        "def softmax_forward(x):\n    return x"
    ),
}


@pytest.mark.parametrize("code", ENDING.values(), ids=ENDING)
def test_no_way_to_end_python_is_right(code, tmp_path, capfd):
    path = tmp_path / "mine.py"
    path.write_text(f"import numpy as np\n{code}\n")
    assert main(["check", "01.2", "--file", str(path)]) == 1
    assert "✗ 01.2 softmax, without overflow: not right yet" in capfd.readouterr().out
    assert progress()["01.2"] == {"tries": 1, "right": None}


def test_a_verdict_is_true_where_it_is_right():
    right = check_exercise("01.1", linear_forward, linear_backward)
    wrong = check_exercise("01.1", linear_forward, lambda dy, cache: (dy, dy, dy))
    unwritten = check_exercise("01.1", *[lambda *_: (_ for _ in ()).throw(NotImplementedError)] * 2)
    for verdict in right, wrong, unwritten:
        assert bool(verdict) is verdict.ok is (verdict is right)
    assert bool(right.report) and not wrong.report
