"""Tests of figures/page.py, and of the page in Chromium."""

import json
import re
import shutil
import subprocess

from details import data
from figures import page, samples
from tests.helpers import a_sample, base, fails, rows_of, trained


def data_of(folder):
    """What stands in a folder's page as data."""
    text = page.write_page(folder).read_text()
    return json.loads(re.search('id="data">(.*?)</script>', text)[1])


# Texts that do harm where they are taken for markup, for commands of a terminal, or cut apart.
HOSTILE = [
    "</script><script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "\x1b[2J \u202e right to left",
    "one line " * 120_000,
    "half of a pair \ud800",
    "{data} {js} __proto__",
]


def hostile_run(folder):
    """A run's folder with such texts in all places."""
    folder.mkdir()
    rows = []
    for text in HOSTILE:
        row = samples.sample_row(base()[1], a_sample(text, role=text[:60]))
        rows.append(row | {"step": 1, "id": text, "question": text, "tokens": [text, "\n"]})
    data.write_jsonl(folder / "samples.jsonl", rows)
    data.write_jsonl(folder / "metrics.jsonl", [{"step": 1, "loss": float("nan")}])
    data.write_jsonl(folder / "run.json", [{"method": HOSTILE[0], "model": HOSTILE[1]}])
    return folder


def test_hostile_texts_are_data(tmp_path):
    """There is no markup but that of page.html, and no byte outside ASCII; the texts come back as
    they were, long ones cut."""
    folder = hostile_run(tmp_path / "run")
    shown = data_of(folder)
    written = (folder / "run.html").read_bytes()
    assert written.isascii()
    assert written.count(b"<script") == 2
    assert b"<img" not in written
    assert b"default-src 'none'" in written
    for text in HOSTILE:
        assert text[: page.LONGEST] in shown["texts"]


# Lines that are none of a run's, and what is said.
BAD = """
samples.jsonl -> {"step": 1} -> samples.jsonl:1|role
samples.jsonl -> {"step": 1, "role": -> samples.jsonl:1|
samples.jsonl -> {"step": 1, "role": "x", "completion": 5, "tokens": [5]} -> samples.jsonl:1|
samples.jsonl -> [7] -> samples.jsonl:1|
metrics.jsonl -> {"step": "1"} -> metrics.jsonl:1|step
"""


OLDER = """{"step": 1, "role": "response", "prompt": "p", "completion": "c", "stopped": true, \
"right": true, "says_right": null, "reward": 1.0, "advantage": 0.5}
"""


def test_what_cannot_be_shown(tmp_path):
    """One line that says what is wrong, and where; an older run's texts are shown."""
    fails("none|no run", page.main, [str(tmp_path / "none")])
    fails("no metrics.jsonl", page.main, [str(tmp_path)])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}')
    (tmp_path / "samples.jsonl").write_text(OLDER)
    assert data_of(tmp_path)["texts"] == ["c", "p"]
    for name, line, words in rows_of(BAD):
        (tmp_path / name).write_text(line + "\n")
        fails(words, page.main, [str(tmp_path)])


# What is done on the page of a run, in JavaScript, and what must hold then.
CLICKS = """
0 -> $("#title").textContent === "gc-rl on toy"
0 -> $("#step").textContent === "step 2 of 2" && $(".squares i.r") && $("pre .plus")
$("#back").click() -> $("#step").textContent === "step 1 of 2" && location.hash.includes("step=1")
$("td button").click() -> $(".dimmed")
$("[data-key=all]").click() -> !$(".dimmed")
$("#colour").value = "logprob", $("#colour").dispatchEvent(new Event("change")) -> $("pre .size")
$("pre span").dispatchEvent(new Event("focusin", {bubbles: true})) -> !$("#readout").hidden
dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown"})) -> $(".chosen").dataset.n === "2"
location.hash = "#step=2&sample=3" -> $(".chosen").dataset.n === "3"
$("svg").dispatchEvent(new MouseEvent("click")) -> $("#step").textContent === "step 0 of 2"
$("#probesView").click() -> $(".scroll").querySelectorAll("tr").length === 9
0 -> document.documentElement.scrollWidth <= 400
"""
UNHARMED = """
0 -> document.title.startsWith("hostile") && document.scripts.length === 2
0 -> !document.images.length && document.body.textContent.includes("<img src=x onerror")
"""


# A page that shows another in a narrow frame, does on it what stands in a table, and says so in the
# end. Where something does not hold it ends with an error.
DRIVER = """<iframe width=400 height=800 src=URL></iframe><script>
onload = async () => {
  const view = document.querySelector("iframe").contentWindow;
  const $ = css => view.document.querySelector(css);
  const perform = async (action, holds) => {
    action();
    await new Promise(done => setTimeout(done, 50));
    if (!holds()) throw Error(holds);
  };
  with (view) { STEPS }
  document.title = "all steps are done";
};
</script>"""
# The frame may be looked into, errors are printed, pauses take no time.
OPTIONS = """--allow-file-access-from-files --enable-logging=stderr --virtual-time-budget=60000
--dump-dom"""


def test_the_page_in_a_browser(tmp_path):
    """Texts, a step, a filter, colours and numbers of tokens, a key, a link, a curve, the same
    questions again, on a narrow screen; hostile texts do nothing. There is no error."""
    if not any(map(shutil.which, page.BROWSERS)):
        print("skipped: test_the_page_in_a_browser, since there is no Chromium")
        return
    trained(tmp_path / "run", "--steps 2 --eval-every 2 --questions 4 --n 4 --eval-size 8")
    hostile_run(tmp_path / "hostile")
    driver = tmp_path / "driver.html"
    command = page.chromium(tmp_path / "profile", *OPTIONS.split(), driver.as_uri())
    for name, table in (("run", CLICKS), ("hostile", UNHARMED)):
        url = page.write_page(tmp_path / name).as_uri()
        steps = "".join(f"await perform(() => {{{a}}}, () => {b});\n" for a, b in rows_of(table))
        driver.write_text(DRIVER.replace("URL", url).replace("STEPS", steps))
        done = subprocess.run(command, capture_output=True, text=True)
        assert "CONSOLE" not in done.stderr, done.stderr
        assert "all steps are done</title>" in done.stdout
