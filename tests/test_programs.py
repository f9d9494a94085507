"""Tests of details/programs.py and details/child.py: how tests are read, what a program earns, and
what it cannot do."""

import ast
import os
import socket
import time

from details import child, programs
from details.errors import InputError, Unreachable
from details.programs import passed, program_of, setup_error, take_apart
from reward import Problem
from tests.helpers import fails, patch, rows_of


def holds():
    """Is there a sandbox? A test that needs one ends where there is none."""
    try:
        programs.find_layer()
    except InputError as error:
        print(f"skipped: {error}")
        return False
    return True


# ---- tests and responses

# A test -> its calls and their values, where it can be judged.
TESTS = r"""
assert f(2, 3) == 5 -> f(2, 3) -> 5
assert f('a == b is c', "'") == ' is (not = 1), ' -> f('a == b is c', "'") -> ' is (not = 1), '
assert f(2) == 'a == b' -> f(2) -> 'a == b'
assert 5 == f(2) -> f(2) -> 5
assert f([], {2: -3.5}) == [(), {'a': {1}}], 'message' -> f([], {2: -3.5}) -> [(), {'a': {1}}]
assert f(x=1) == 1e999 -> f(x=1) -> 1e309
assert f(2) is None -> f(2) -> None
assert f(2) -> f(2) -> True
assert not f(2) -> f(2) -> False
assert f(2) is True -> f(2) -> True
assert set(f(2)) == set((1, 2)) -> set(f(2)) -> {1, 2}
assert set(f(2)) == {1} -> set(f(2)) -> {1}
assert tuple(f([2])) == tuple([1, 2]) -> tuple(f([2])) -> (1, 2,)
assert abs(f(2, 3) - 4.0) < 1e-6 -> f(2, 3) -> 4.0
assert abs(f(2) - -4.0) <= 0.0000001 -> f(2) -> -4.0
assert abs(f(2, 3) - 4) < 1e-6 -> f(2, 3) -> 4.0
assert math.isclose(f(2, 3), 4.0) -> f(2, 3) -> 4.0
assert math.isclose(f(2, 3), -4) -> f(2, 3) -> -4.0
assert int(f(2)) == 3 -> int(f(2)) -> 3
assert f(Pair(1, 2)) == 3 -> f(Pair(1, 2)) -> 3
assert f(2) == 5¶assert f(3)¶assert not f(4) -> f(2) -> 5 -> f(3) -> True -> f(4) -> False
METADATA = {}¶def check(candidate):¶ 'x'¶ print¶ assert candidate([2]) == 5 -> f([2]) -> 5
def check(candidate):¶ assert set(map(candidate, [2])) == {5}, '' -> set(map(f, [2])) -> {5}
assert True¶assert f(2) == 'candidate' -> f(2) -> 'candidate'
assert f(2) == g(2)
assert f(2) != 5
assert f(2) in (1, 5)
assert f(2) > 5
assert f(2) == 5 == 5
assert f(2) == 5 and f(3) == 6
assert f(2) == 5 if x else True
assert not f(2) == 5
assert f(2) is not None
assert (f(2) == 5) == True
assert f(2).__eq__(5)
assert equal(f(2), 5) == True
assert all(f(i) == i for i in (2, 3))
assert [f(2) == 5] == [True]
assert list(map(lambda x: f(x) == 5, (2,))) == [True]
assert math.isclose(f(2), 4.0, rel_tol=0.1)
assert abs(f(2) - 4.0) < 0.1
assert f(2) == 1e999j
assert 2 == 2
assert True
assert f(2) == 5¶assert f(3) > 1
assert f(2) == 5¶for x in (2, 3):¶ assert f(x)
assert f(2) == 5¶x = 3
import math¶assert f(2) == 5
"""

# A response -> its program, if it has one.
RESPONSES = r"""
```python¶code¶``` -> code¶
```¶code¶```¶text -> code¶
text¶~~~ python¶code¶~~~ -> code¶
```py¶code -> code
```¶other¶```¶text¶```¶code¶``` -> code¶
```¶other¶```¶```python¶code -> code
````¶code¶```¶# ```¶```` -> code¶```¶# ```¶
~~~¶code¶```¶~~~ -> code¶```¶
1. So:¶   ```python¶   if code:¶     pass¶   ``` -> if code:¶  pass¶
```¶other¶```¶~~~¶¶~~~ -> ¶
```¶def f()¶```¶```¶def g()¶```¶```¶f() # undef g¶``` -> def g()¶
code
`code` and ```code```
"""


def test_tests_are_taken_apart():
    """Into calls and values. If one could only be compared where the program is, none is judged."""
    for test, *expected in rows_of(TESTS):
        try:
            assert [*sum(take_apart([test], "f"), ())] == expected != [], test
        except Unreachable:
            assert not expected, test
    fails("syntax", take_apart, ["assert f(2) == 5", "assert f(2) =="], "f", kind=SyntaxError)
    fails("continuation", take_apart, ["assert candidate(2) == 5"], r"\1", kind=SyntaxError)


def test_last_fenced_block_is_the_program():
    """The last with a function, if any has one. A block without an end ends with the response.
    Reading takes linear time."""
    for response, *expected in rows_of(RESPONSES):
        assert [program_of(response)] == (expected or [None]), response
    began = time.time()
    for text in ("~" * 50_000 + "`", "`" * 99_999, " " * 99_999, "```\n" * 30_000, "\n" * 99_999):
        program_of(text + "x")
        program_of("```\n" + text)
    assert time.time() - began < 2


# ---- values and reports

# A value -> what it is -> what it is not.
VALUES = r"""
5 -> 5 | 5.0 -> 6 | True | '5' | [5] | 5j
1 -> 1 | 1.0 -> True | 1.0000001 | 2
0.1 + 0.2 -> 0.3 -> 0.3001 | 0 | '0.30000000000000004'
True -> True -> 1 | 1.0 | 'True'
None -> None -> 0 | False | 'None'
1e999 -> 1e999 -> -1e999 | 1
'a\n\'é' -> 'a\n\'é' -> b'a' | 'a'
b'a' -> b'a' -> 'a'
[1, (2,)] -> [1.0, (2,)] -> (1, (2,)) | [1, [2]] | [1, (2,), 3] | [1] | [True, (2,)] | 'list'
() -> () -> [] | None | {} | ('tuple',)
{3, 1.5, 'a'} -> {'a', 1.5, 3} -> {3, 1.5} | {3, 1.6, 'a'} | [3, 1.5, 'a'] | {3, 1.5, 'b'}
set() -> set() -> {} | ()
{0, 8} -> {8, 0} -> {0, 8, 16}
{1: [2], 'a': {}} -> {'a': {}, 1.0: [2]} -> {1: [2]} | {True: [2], 'a': {}} | {1: [3], 'a': {}}
child.Counter('aab') -> {'a': 2, 'b': 1} -> {'a': 2, 'b': 2} | {'a', 'b'}
child.defaultdict(list, a=[1]) -> {'a': [1]} -> {'a': 1}
0.0 -> 1e-17 | 0 -> 1e-9
6.67e-11 -> 6.67e-11 -> 6.6e-11
1 + 2j -> 1 + 2j -> 1
"""

# The first of these reports is right.
REPORTS = r"""
b"('tuple',5,)"
b"('tuple',5,)" * 2
b"('tuple',5,5,)"
b"('tuple',True,)"
b"('tuple',3+2,)"
b"('tuple',__import__('math').floor(5.5),)"
b"('tuple',nan,)"
b"('tuple',0x" + b"f" * 60_000 + b",)"
b"(" * 60_000
b"-" * 60_000 + b"5"
b"5+" * 30_000 + b"5"
b"'passed'"
b"5"
b"\xff\x00"
b""
"""


def test_values_are_compared_by_type():
    """Numbers by value, floats to a millionth; a bool is no number, a tuple no list."""
    for value, right, wrong in rows_of(VALUES):
        for literals, expected in ((right, True), (wrong, False)):
            for literal in literals.split(" | "):
                both = [ast.literal_eval(child.written(eval(text))) for text in (value, literal)]
                assert programs.same(*both) == expected, (value, literal)


FIVE = Problem("", program=True, tests=(("f(2)", "5"),))


def test_what_is_in_a_report_does_no_harm():
    """The program may have written it."""
    verdicts = []
    for [report] in rows_of(REPORTS):
        with patch(programs, "reported", return_value=eval(report)):
            verdicts.append(programs.judged(FIVE, "~~~\n~~~"))
    assert verdicts == [True] + [False] * 14


# ---- what runs

# With the test f(2) == 271828: what does not return it. DATA names a file that holds it.
FORGERIES = r"""
import sys; sys.exit(0)
----
import os; os._exit(0)
----
class Equal:
    def __eq__(self, other): return True
    def __hash__(self): return 271828
def f(x): return Equal()
----
class Number(int): pass
def f(x): return Number(271828)
----
class Lies(type):
    def __eq__(self, other): return True
    def __hash__(self): return hash(int)
class Number(metaclass=Lies):
    __class__ = int
    def __repr__(self): return "271828"
def f(x): return Number()
----
class Text(str):
    def __repr__(self): return "271828"
def f(x): return Text("271828")
----
print("passed")
print("('tuple',271828,)")
def f(x): return 0
----
import os
for channel in (1, 2): os.write(channel, b"('tuple',271828,)")
os._exit(0)
----
import os
def f(x):
    for channel in range(64):
        try: os.write(channel, b"('tuple',271828,)")
        except OSError: pass
    return 0
----
import ast, builtins, json, marshal
for module in (ast, builtins, json, marshal):
    for name in ("ascii", "repr", "type", "int", "str", "eval", "dumps", "literal_eval"):
        if hasattr(module, name): setattr(module, name, lambda *rest: "271828")
def f(x): return 0
----
import builtins
class Text:
    def __repr__(self): return "271828"
builtins.type = lambda value: int
def f(x): return Text()
----
import atexit, os, threading, time
def late(seconds=0):
    time.sleep(seconds)
    os.write(3, b"('tuple',271828,)")
atexit.register(late)
threading.Thread(target=late, args=[1]).start()
def f(x): return 0
----
import gc, os, sys
def f(x):
    frame = sys._getframe().f_back
    seen = [sys.argv, sys.orig_argv, dict(os.environ), *gc.get_objects()]
    while frame:
        seen += frame.f_locals.values()
        frame = frame.f_back
    for item in seen:
        if type(item) in (str, bytes, tuple, list, dict) and str(x + 271826) in repr(item):
            return x + 271826
----
import glob
def f(x): return 271828 if glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/*/environ") else 0
----
def f(x): return int(open(DATA).read())
"""

# With the test f(2) == 5: what ends early, and what returns it if it can do harm.
HARMFUL = """
while True: pass
----
import time; time.sleep(99)
----
import os
os.closerange(0, 99)
while True: pass
----
def f(x): return len([0] * 10**9) and 5
----
import os
while True: os.fork()
----
import os, time
def f(x):
    for _ in range(100):
        if not os.fork(): time.sleep(99)
    return 5
----
def f(x):
    while True: print("x" * 10**6)
----
import os
while True: os.write(3, b" " * 10**6)
----
import os
def f(x): return os.write(3, b" " * 70_000) and 5
----
import os
def f(x): return [os.dup(0) for _ in range(100)] and 5
----
def f(x): return open("/big", "w").write("x" * 10**7) and 5
----
import os
def f(x): return os.kill(-1, 0) or 5
----
def f(x): return open(DATA, "a").write("x") and 5
----
import os
def f(x): return open(os.__file__, "a").write("") or 5
----
import os
def f(x): return os.mkdir("/usr/lib/x") or 5
----
import os
def f(x): return 5 if os.path.exists(HOME + "/.bashrc") or os.path.exists("/etc") else 0
----
import socket
def f(x): return socket.create_connection(("127.0.0.1", PORT)) and 5
----
import resource
def f(x):
    for name in ("CPU", "AS", "FSIZE", "NPROC", "NOFILE"):
        try: return resource.setrlimit(getattr(resource, "RLIMIT_" + name), (1 << 40, 1 << 40)) or 5
        except ValueError: pass
"""

# With the test f(2) == 5: what is right.
RIGHT = """
def f(x: List[int]) -> Any: return x + 3
----
import os
def f(x):
    alone = {*os.environ} <= {"PYTHONHASHSEED", "LC_CTYPE", "PWD", "_"}
    return 5 if alone and hash("a") == 4644417185603328019 else 0
----
from __future__ import annotations
import dataclasses, tempfile, threading, time
@dataclasses.dataclass
class Five: value: int = 5
def f(x):
    print("x" * 10**6)
    threading.Thread(target=time.sleep, args=[99]).start()
    tempfile.TemporaryFile().write(b"x")
    return Five().value
----
import os, time
def f(x):
    if not os.fork():
        os.setsid()
        time.sleep(99)
    return 5
"""


# A setup -> what is wrong with it.
SETUPS = r"""
node = Node()¶node.x = 1
import math
import no_such -> ModuleNotFoundError: No module named 'no_such'
x = -> SyntaxError: invalid syntax (<string>, line 1)
raise ValueError('a\nb') -> ValueError: a\nb
while True: pass -> it does not come to its end
"""


def verdicts(table, value, setup=""):
    """Whether f(2) returns the value, of programs that are judged in one call."""
    return judged(table.split("----\n"), (("f(2)", value),), setup)


def judged(sources, tests, setup=""):
    """Of each program: does it pass?"""
    problem = Problem("", program=True, tests=tests, setup=setup)
    responses = [f"~~~~\n{source}\n~~~~" for source in sources]
    return passed([problem] * len(sources), responses)


def test_right_value_is_what_earns(tmp_path):
    """And nothing else. A program among forgeries is judged as ever."""
    if holds():
        data = tmp_path / "data"
        data.write_text("271828")
        programs_and_one = FORGERIES + "----\ndef f(x): return 271826 + x"
        *forged, right = verdicts(programs_and_one, "271828", f"DATA = '{data}'")
        assert right and not any(forged), forged


def test_machine_is_safe(tmp_path):
    """Programs that use it up are ended, those that reach out find nothing. What a right one leaves
    behind does not hold up its verdict."""
    if holds():
        files = os.listdir("/dev/fd")
        data = tmp_path / "data"
        data.write_text("5")
        with socket.create_server(("127.0.0.1", 0)) as server, patch(programs, "SECONDS", 3):
            found = f"DATA, HOME = '{data}', '{os.path.expanduser('~')}'"
            found += f"; PORT = {server.getsockname()[1]}"
            harm = verdicts(HARMFUL, "5", found)
            assert not any(harm), harm
        with patch(programs, "SECONDS", 80):
            began = time.time()
            assert all(verdicts(RIGHT, "5"))
            assert time.time() - began < 40
        assert data.read_text() == "5"
        assert len(os.listdir("/dev/fd")) == len(files)


def test_program_setup_and_calls_run_in_turn():
    """The setup uses what the program defines. What a call returned counts as it was then."""
    if holds():
        program = "class Node: pass\nseen = []\ndef f(x): seen.append(x); return seen"
        tests = ("f(1)", "[1]"), ("f(node.x)", "[1, 1e999]")
        setup = "node = Node()\nnode.x = 1e999"
        assert judged([program], tests, setup) == [True]
        assert judged([program], tests[::-1], setup) == judged([program], tests) == [False]
        for wrong, *expected in rows_of(SETUPS):
            assert setup_error(wrong) == (expected or [None])[0]


def test_layer_is_found_by_trying():
    """One that fails, or lets a program do what it should not, is none: then nothing is judged,
    unless it is asked for."""
    tests = ("f(2)", "2"), ("f(1)", "1")
    fine = ["def f(x): return x", "x"]
    for script in ('"$0" "$@" 3>&1 >/dev/null 2>&1', "exit 1"):
        with patch(programs, "layer", None), patch(programs, "LAYERS", [script]):
            fails("--unsafe-code", judged, fine, tests)
            fails("--unsafe-code", setup_error, "")
            programs.layer = programs.UNSAFE
            assert judged(fine, tests) == [True, False]
