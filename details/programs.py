r"""Does the program in a response pass its tests?

Take the test `assert add(2, 3) == 5`. When data is read it is taken apart: into the call
`add(2, 3)` and the value `5`. The program is the last fenced block of the response. A fresh
interpreter in a sandbox runs it and reports what `add(2, 3)` returns (child.py); the `5` never goes
there, it is compared here. So a program is right if it returns the right values, whatever else it
does: print, exit, patch builtins, return objects that equal everything.

A sandbox has no network, no processes but the program's, and no files but the interpreter's, the
system's libraries and 16 MB that are gone afterwards. On Linux it is made by `bwrap`, or by
`unshare` where that does not work. On a Mac it would be `sandbox-exec`, which has not been tried:
there memory has no limit and nothing can be written. On Windows there is none.
"""

import ast
import contextlib
import functools
import inspect
import marshal
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor

from details import child
from details.errors import InputError, Unreachable

# ---- first stage: take the tests apart

# What is asserted, as ast.unparse writes it => a call => what it should return. The first line that
# fits and gives both counts.
FORMS = r"""
not (.+) => \1 => False
(set\(.+\)) == set\([(\[](.+)[)\]]\) => \1 => {\2}
(tuple\(.+\)) == tuple\([(\[](.+)[)\]]\) => \1 => (\2,)
abs\((.+) - (-?\d+)\) <=? 1e-(?:0[6-9]|1\d) => \1 => \2.0
abs\((.+) - (.+)\) <=? 1e-(?:0[6-9]|1\d) => \1 => \2
math\.isclose\((.+), (-?\d+)\) => \1 => \2.0
math\.isclose\((.+), (.+)\) => \1 => \2
(.+) == (.+) => \1 => \2
(.+?) == (.+) => \1 => \2
(.+?) == (.+) => \2 => \1
(.+) is (.+) => \1 => \2
(.+) => \1 => True
"""


def take_apart(sources, entry_point):
    """((call, literal of its value), ...) of tests. entry_point: what is called in place of the
    `candidate` in HumanEval's `def check(candidate)`."""
    source = "\n".join(sources)
    source = re.sub(r"\bcandidate\b(?=[(),])", lambda _: entry_point, source)
    statements = ast.parse(source).body
    tests = []
    for statement in statements:
        match statement:
            case ast.FunctionDef(body=body):
                statements += body
            case ast.Assert(ast.Constant(True)) | ast.Expr() | ast.Assign([ast.Name("METADATA")]):
                pass  # It tests nothing.
            case ast.Assert(test):
                tests.append(call_and_value(ast.unparse(test)))
            case _:
                raise Unreachable("more than asserts")
    if not tests:
        raise Unreachable("no assert")
    return tuple(tests)


def call_and_value(asserted):
    """The source of a call, and the literal of what it should return."""
    for pattern, *templates in re.findall("(.+) => (.+) => (.+)", FORMS):
        if match := re.fullmatch(pattern, asserted):
            call, value = map(match.expand, templates)
            with contextlib.suppress(SyntaxError, ValueError, TypeError):
                # What cannot be reported is no test.
                ast.literal_eval(child.written(ast.literal_eval(value)))
                tree = ast.dump(ast.parse(call))
                # In all(f(x) == 1 for x in (2, 3)) the program's own objects would decide. So
                # nothing compares there, and a call that should return True or False is alone.
                alone = tree.count("Call(") == 1 or value not in ("True", "False")
                if re.match(r"Module\(body=\[Expr\(value=Call\((?!.*Compare\()", tree) and alone:
                    return call, value
    raise Unreachable(asserted[:60])


# ---- second stage: find the program

# A fence, what is behind it on its line, the block, a fence like it or the end.
FENCED = r"(?ms)^[ \t]*(`{3,}+|~{3,}+)[^`\n]*+\n(.*?)(?:^[ \t]*\1[`~]*[ \t\r]*$|\Z)"


def program_of(response):
    """The last fenced block, closed or not, that defines a function: what follows it may be how it
    is called. Else the last; None where there is none."""
    blocks = sorted(re.findall(FENCED, response), key=lambda block: "\ndef " in "\n" + block[1])
    return textwrap.dedent(blocks[-1][1]) if blocks else None


# ---- third stage: run it

# Shell scripts that run the interpreter "$0" with "$@" and what it may see. The report goes through
# a channel of its own, 3, what the program prints to nowhere.
PATHS = '/lib /lib64 /usr/lib /usr/lib64 "$prefix/bin" "$prefix/lib" "$prefix/lib64"'
LAYERS = (
    f"""
    cd /
    unset PWD OLDPWD SHLVL
    # Where memory runs out, this ends before others.
    echo 1000 > /proc/self/oom_score_adj || :
    prefix=${{0%/bin/*}}
    set -- --remount-ro / "$0" "$@"
    for path in {PATHS}; do
        set -- --ro-bind-try "$path" "$path" "$@"
    done
    bwrap --unshare-all --die-with-parent --size 16777216 --tmpfs /tmp "$@" 3>&1 >/dev/null 2>&1
    exit
    """,
    # Root mounts and then becomes nobody, since the number of root's processes has no limit. Others
    # are root, in a namespace, for as long as they mount. There the first process is a shell, which
    # stays: the program cannot end it, and everything ends with it.
    f"""
    cd /
    if [ $(id -u) = 0 ]; then
        enter="chroot --userspec=65534:65534 --groups= /sys"
    else
        user="--user --map-root-user"
        enter="unshare --user --map-user=65534 --map-group=65534 --root=/sys"
    fi
    exec setpriv --pdeathsig KILL \
        unshare $user --mount --net --pid --ipc --fork --kill-child sh -c '
        set -e
        unset PWD OLDPWD SHLVL
        PATH=/usr/sbin:/usr/bin:/sbin:/bin
        enter=$0
        prefix=${{1%/bin/*}}
        # Where memory runs out, this ends before others.
        echo 1000 > /proc/self/oom_score_adj || :
        # A new root without /proc takes the place of /sys, which is everywhere.
        mount -n -t tmpfs -o size=16m,nr_inodes=1k,mode=1777,nosuid,nodev tmpfs /sys
        for path in {PATHS}; do
            echo "$path /sys$path none rbind,ro,nosuid,nodev,nofail,x-mount.mkdir 0 0"
        done > /sys/mounts
        mount -n -a -T /sys/mounts
        $enter "$@" 3>&1 >/dev/null 2>&1
        exit
        ' "$enter" "$0" "$@"
    """,
    """
    cd /
    sandbox-exec -D PREFIX="${0%/bin/*}" -p '
        (version 1)
        (deny default)
        (import "system.sb")
        (allow process-fork)
        (allow signal (target self))
        (allow file-read-metadata)
        (allow process-exec* file-read*
            (subpath (param "PREFIX"))
            (subpath "/opt/homebrew/Cellar") (subpath "/opt/homebrew/opt")
            (subpath "/usr/local/Cellar") (subpath "/usr/local/opt"))
        ' "$0" "$@" 3>&1 >/dev/null 2>&1
    exit
    """,
)
SECONDS = 10  # on the clock, for programs that sleep; child.py limits the processor's

# A program that counts what it can do and should not.
TRIAL = """
import glob, os, socket, time

def escapes(project, home, port):
    done = []
    def attempt(act, *args):
        try:
            done.append(act(*args))
        except OSError:
            pass
    for path in [project, *glob.glob(home + "/.*")]:
        attempt(open, path)
    for path in (project, os.__file__):
        attempt(open, path, "a")
    attempt(socket.create_connection, ("127.0.0.1", port), 1)
    def fork_often():
        for _ in range(100):
            if not os.fork():
                time.sleep(9)
                os._exit(0)
    attempt(fork_often)
    return len(done)
"""

# Limits, but no layer.
UNSAFE = 'cd /; unset PWD OLDPWD SHLVL; "$0" "$@" 3>&1 >/dev/null 2>&1; exit'
layer = None  # the script that is used, once one holds


def find_layer():
    """Try the layers, once. Raises InputError where none holds."""
    global layer
    if layer:
        return
    home = os.path.expanduser("~")
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls = [f"escapes({__file__!r}, {home!r}, {server.getsockname()[1]})"]
        for script in LAYERS:
            if os.name == "posix" and reported(script, TRIAL, "", calls) == b"('tuple',0,)":
                layer = script
                return
    raise InputError("no sandbox works here (bwrap, unshare); --unsafe-code does without one")


def reported(script, program, setup, calls):
    """What child.py writes, or b"" if the program did not let it come to that."""
    with tempfile.TemporaryFile() as report:
        with subprocess.Popen(
            [
                "sh",
                "-c",
                script,
                os.path.realpath(sys._base_executable),
                "-PsSBc",
                inspect.getsource(child),
            ],
            stdin=subprocess.PIPE,
            stdout=report,
            stderr=subprocess.PIPE,  # of the script; its end is noticed at once
            env={"PYTHONHASHSEED": "0"},  # so that outcomes repeat
            start_new_session=True,
        ) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(marshal.dumps((program, setup, calls)), SECONDS)
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        report.seek(0)
        return report.read(1 << 16)


# ---- last stage: compare


def same(found, expected):
    """Of literals as child.py writes them: 1 and 1.0 are the same, 0.1 + 0.2 and 0.3 too, 1 and
    True are not."""
    kinds = {type(found), type(expected)}
    if kinds == {tuple}:
        return len(found) == len(expected) and all(map(same, found, expected))
    if kinds == {float}:
        return math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-15)
    return found == expected and (len(kinds) == 1 or kinds == {int, float})


def judged(problem, response):
    """Does a response pass? None where no program is asked for."""
    if not problem.program:
        return None
    program = program_of(response)
    if program is None:
        return False
    calls, values = zip(*problem.tests)
    report = reported(layer, program, problem.setup, calls)
    expected = ast.literal_eval(child.written(tuple(map(ast.literal_eval, values))))
    with contextlib.suppress(Exception):  # of any kind: the program may have written the report
        return same(ast.literal_eval(report.decode()), expected)
    return False


def passed(problems, responses):
    """`judged` of each response, side by side: does every call in its problem's tests return its
    value?"""
    if any(problem.program for problem in problems):
        find_layer()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(judged, problems, responses))


@functools.cache
def setup_error(setup):
    """What is wrong with a setup, in a line, or None. It may use names that programs define."""
    find_layer()
    report = reported(layer, "", setup, ()).decode()
    if re.match(r"\('tuple',\)|.NameError:", report):
        return None
    return report[1:-1] or "it does not come to its end"
