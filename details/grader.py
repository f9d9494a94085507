"""A grader of your own: `--grader FILE.py:function`.

Say each line of the data has a question and `words`, how many words a response may have:

    def short(row, response):
        return len(response.split()) <= row["words"]

Unlike what a model writes, this file is the user's, so it is run as it is. It is given on the
command line and never taken from a run's folder, which may come from elsewhere.
"""

import json
import runpy
import traceback

from details.errors import InputError, one_line

GRADER = {}  # file and function, until train.py or sample.py is called again
TOLD = set()  # how it has failed


def load(name):
    """Load `FILE.py:function`. Raises InputError."""
    file, _, function = name.rpartition(":")
    GRADER["file"] = file = file or name
    try:
        GRADER["function"] = runpy.run_path(file).get(function)
    except (Exception, SystemExit) as error:
        raise failure(error) from error
    if not callable(GRADER["function"]):
        raise InputError(f"--grader {name}: not FILE.py:function; {file} has no {function!r}")


def failure(error):
    """The error as an InputError that names the grader's line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f":{frame.lineno}" for frame in frames if frame.filename == GRADER["file"]]
    where = f"{GRADER['file']}{''.join(lines[-1:])}"
    return InputError(f"--grader {where}: {type(error).__name__}: {one_line(error)}")


def verdict(row, response):
    """What the grader says of a response to a line of the data, JSON. Raises InputError where it
    fails, or says neither True nor False."""
    try:
        found = GRADER["function"](json.loads(row), response)
        if found not in (True, False):
            raise ValueError(f"{found!r:.60} is returned, not True or False")
    except (Exception, SystemExit) as error:
        raise failure(error) from error
    return bool(found)


def graded(row, response):
    """Is the response right? Where the grader fails on it, no; each failure is told once."""
    try:
        return verdict(row, response)
    except InputError as error:
        if str(error) not in TOLD:
            print(f"note: {error}; the response counts as wrong")
            TOLD.add(str(error))
        return False
