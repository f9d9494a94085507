// The page of a run: what page.py wrote into it as data becomes elements, its texts text nodes.
"use strict";

const find = id => document.getElementById(id);
const on = (id, event, action) => find(id).addEventListener(event, action);
const run = JSON.parse(find("data").textContent);
const metrics = run.metrics;
const { method = "a run", model = "a model" } = run.flags;
const last = Math.max(...metrics.step);
const stepsOf = view => Object.keys(view === "step" ? run.steps : run.probes).map(Number);

// What is shown. It stands in the address, as #step=20&sample=3.
const START = { view: "step", step: last, sample: 1, colour: "push", role: "", cell: "", only: "" };
const state = { ...START };

// ------------------------------------------------------------------------------ small helpers
// Control characters, and those that turn the direction of a text: nobody would see them.
const HIDDEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;
const visible = text =>
  String(text).replace(HIDDEN, sign => `\u27e8${sign.codePointAt(0).toString(16)}\u27e9`);

/** An element; children are elements, texts, lists of them, or nothing. */
function h(tag, attributes = {}, ...children) {
  const space = ["svg", "path", "circle", "text"].includes(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value);
  }
  for (const child of children.flat(9)) {
    if (child instanceof Node) node.append(child);
    else if (child || child === 0) node.append(visible(child));
  }
  return node;
}
const box = (name, ...children) => h("div", { class: name }, ...children);
const CHANGED = " \u00b7 what has changed is underlined";
const soft = words => h("span", { class: "soft" }, words);
// key: by it the button keeps the focus when the page is drawn again.
const button = (key, label, pressed, onclick) =>
  h("button", { "data-key": key, "aria-pressed": `${pressed}`, onclick }, label);
const number = (value, digits = 2) => value?.toFixed(digits) ?? "\u2013";
const signed = (value, digits = 2) => (value > 0 ? "+" : "") + number(value, digits);
const share = (list, test) => `${list.filter(test).length} of ${list.length}`;
const unique = values => [...new Set(values)];

// ------------------------------------------------------------------------------------ samples
const made = new Set();
/** The samples of a step, or of an evaluation's questions, made whole when first asked for. */
function samplesOf(step, view = state.view) {
  const rows = (view === "step" ? run.steps : run.probes)[step] ?? [];
  if (made.has(rows)) return rows;
  made.add(rows);
  const named = new Map();
  rows.forEach((row, index) => {
    named.set(row.id, row);
    row.n = index + 1;
    row.step = step;
    row.judges = row.role === "critique";
    row.question = run.texts[row.question ?? row.prompt];
    row.tokens = row.tokens.map(token => run.texts[token]);
    row.parts = row.completion === undefined ? row.tokens : [run.texts[row.completion]];
    // What it is a critique of, or the attempt before it; and whether that was right.
    row.before = row.parent === undefined ? undefined : named.get(row.parent);
    row.of = row.before ? row.before.right : row.response_right;
    row.verdict = row.judges ? row.says_right : row.right;
    row.good = row.judges ? row.verdict === row.of : row.verdict;
    if (row.judges && row.before) row.before.kept = true;
    if (row.of !== undefined) row.cell = `${row.of},${row.verdict}`;
  });
  return rows;
}

const ONLY = {
  zero: ["advantage 0", row => row.advantage === 0],
  truncated: ["truncated", row => !row.stopped],
  again: ["a wrong answer given again", row => row.again && !row.right],
  unsound: ["wrong for a wrong reason", row => row.sound === false && row.of === false],
};
const filtering = () => state.role || state.cell || state.only;
const passes = row =>
  (!state.role || row.role === state.role) &&
  (!state.cell || row.cell === state.cell) &&
  (!state.only || ONLY[state.only][1](row));

// ------------------------------------------------------------------------------------- tokens
// {name: [label, the value of a token where there is one, the legend]}. A legend that begins at 0
// is that of a size, the others have signs.
const COLOURS = {
  push: ["push: advantage \u00d7 (1 \u2212 p)", push, [-1, -0.5, 0, 0.5, 1]],
  advantage: ["advantage", row => row.advantage, [-2, -1, 0, 1, 2]],
  logprob: ["log-prob when drawn", (row, i) => row.logprobs?.[i] / 1000, [0, -1, -2, -3]],
  ratio: ["log ratio, learner / sampler", (row, i) => row.log_ratios?.[i] / 1000, [-0.2, 0, 0.2]],
  clipped: ["clipped", (row, i) => row.clipped && Number(row.clipped.includes(i)), [0, 1]],
  none: ["nothing", () => undefined, []],
};
// Nothing is learned from an evaluation's questions: of their tokens the log-probs are known.
const colourName = () => (state.view === "step" ? state.colour : "logprob");
const colour = () => COLOURS[colourName()];

/** How far a token's log-prob is moved: little where it is sure already. */
function push(row, i) {
  return row.logprobs && row.advantage * (1 - Math.exp(row.logprobs[i] / 1000));
}

/** Colour an element by a value on the scale of a legend. */
function paint(node, value, legend) {
  const much = Math.min(1, Math.abs(value) / Math.max(...legend.map(Math.abs)));
  if (!(much > 0.02)) return node;
  node.classList.add(legend[0] === 0 ? "size" : value > 0 ? "plus" : "minus");
  node.style.setProperty("--much", much);
  return node;
}

/** Which parts of `b` are new: those outside its longest common subsequence with `a`. */
function changes(a, b) {
  const changed = new Set();
  if (a.length * b.length > 1e6) return changed;
  const longest = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      if (a[i] === b[j]) longest[i][j] = longest[i + 1][j + 1] + 1;
      else longest[i][j] = Math.max(longest[i + 1][j], longest[i][j + 1]);
  let i = 0;
  for (let j = 0; j < b.length; j++) {
    while (i < a.length && a[i] !== b[j] && longest[i + 1][j] >= longest[i][j + 1]) i++;
    if (a[i] === b[j]) i++;
    else changed.add(j);
  }
  return changed;
}

/** A completion, token by token, compared with an earlier one; a note where something is wrong. */
function text(row, chosen, earlier) {
  const [, value, legend] = colour();
  const changed = earlier ? changes(earlier.parts, row.parts) : new Set();
  const noted = row.wrong_line ?? row.no_line;
  const reason = row.sound ? "the right reason" : "a wrong reason";
  const note = `\u2190 ${row.judges ? reason : "first wrong step"}`;
  let line = 0;
  const parts = row.parts.map((part, i) => {
    const isEnd = row.stopped && row.tokens === row.parts && i === row.parts.length - 1;
    const kind = isEnd ? "end" : changed.has(i) ? "changed" : undefined;
    const span = h("span", { class: kind, "data-i": i, tabindex: chosen && 0 }, part);
    if (row.tokens === row.parts && legend.length) paint(span, value(row, i), legend);
    const ends = part.includes("\n");
    const mark = line === noted && (ends || isEnd);
    line += part.split("\n").length - 1;
    return [mark && h("em", { class: row.sound ? "up" : "down" }, note), span];
  });
  return h("pre", { "data-n": row.n, "data-step": row.step }, parts);
}

/** What is known of a token, while the pointer or the focus is on it. */
function read(event) {
  const span = event.target.closest?.("pre [data-i]");
  find("readout").hidden = !span;
  if (!span) return;
  const { n, step } = span.parentNode.dataset;
  const row = samplesOf(step)[n - 1];
  const i = Number(span.dataset.i);
  const drawn = row.logprobs && row.tokens === row.parts;
  const logprob = drawn && row.logprobs[i] / 1000;
  const clipped = row.clipped?.includes(i) ? "clipped" : "not clipped";
  const imitated = ["star", "pair-sft"].includes(method) && row.advantage > 0;
  const unclipped = imitated ? "learned as it stands" : "no gradient was computed";
  const learned = state.view === "step" && [
    `advantage ${signed(row.advantage)}`,
    drawn && `push ${signed(push(row, i))}`,
    drawn && row.log_ratios && `log ratio ${signed(row.log_ratios[i] / 1000, 3)}`,
    row.clipped ? clipped : unclipped,
  ];
  const known = drawn && `log-prob ${number(logprob, 3)}, p ${number(Math.exp(logprob))}`;
  const facts = [JSON.stringify(row.parts[i].slice(0, 80)), known, learned].flat().filter(Boolean);
  find("readout").replaceChildren(visible(facts.join("  \u00b7  ")));
}

/** A sample: what it is worth, and its text. context: it stays in sight whatever is looked for. */
function card(row, earlier, context) {
  const inStep = state.view === "step";
  const chosen = inStep && row.n === state.sample;
  const word = { true: "right", false: "wrong" }[row.verdict] ?? "no judgement";
  const says = row.judges && row.verdict !== undefined ? `says ${word}` : word;
  const facts = [
    h("span", {}, inStep && `${row.n}. `, row.role),
    h("b", { class: row.good ? "up" : "down" }, row.good ? "\u2713 " : "\u2717 ", says),
    inStep && h("span", {}, `reward ${Number((row.reward ?? NaN).toFixed(2))}`),
    inStep && h("span", {}, `advantage ${signed(row.advantage ?? NaN)}`),
    inStep && row.kept && h("b", {}, "kept for the critic"),
    !row.stopped && h("b", {}, "truncated"),
    row.again && !row.right && h("b", {}, "the same answer"),
  ];
  const dimmed = inStep && !context && filtering() && !passes(row);
  const name = `card${chosen ? " chosen" : ""}${dimmed ? " dimmed" : ""}`;
  // Who marks words to copy them does not choose the sample.
  const onclick = () => chosen || !inStep || `${getSelection()}` || go({ sample: row.n });
  const attributes = { class: name, "aria-current": chosen, "data-n": row.n, onclick };
  return h("article", attributes, h("header", {}, facts), text(row, chosen, earlier));
}

// ------------------------------------------------------------------------------------- a step
/** All questions of the step: what became of each, and why. */
function questions() {
  const rows = run.outcomes[state.step];
  if (!rows?.length) return null;
  const dropped = run.flags.method === "gc-rl" && run.flags.balance === "filter" &&
    run.flags.critique_data === "dynamic";
  const kind = ([, letters]) => letters.includes("r") + 2 * letters.includes("w");
  const meanings = [
    [2, dropped ? "dropped: none is right" : "all wrong: none is better"],
    [3, dropped ? "kept: a right and a wrong one go to the critic" : "right and wrong ones"],
    [1, dropped ? "dropped: none is wrong" : "all right: none is better"],
    [0, "truncated, all of them"],
  ];
  const column = ([question, letters]) => {
    const squares = [...letters].sort().map(letter => h("i", { class: letter }));
    return h("span", { title: visible(question) }, squares);
  };
  const groups = meanings.map(([key, meaning]) => {
    const members = rows.filter(row => kind(row) === key);
    const label = h("p", {}, h("b", {}, members.length), ` ${meaning}`);
    return members.length > 0 && h("div", {}, box("squares", members.map(column)), label);
  });
  const first = rows.length === 64 ? " \u00b7 the first 64" : "";
  const legend = soft(`${first} \u00b7 squares are responses, the full ones right`);
  return h("div", {}, h("h3", {}, "Questions of this step", legend), box("questions", groups));
}

/** Buttons that look for some of the samples, with their number in this step. */
function filters(rows) {
  const toggle = (name, value) => () => go({ [name]: state[name] === value ? "" : value });
  const choice = (name, value, label, test) => {
    const found = rows.filter(test).length;
    const pressed = state[name] === value;
    const words = label ? `${label}: ${found}` : found;
    return button(`${name} ${value}`, words, pressed, toggle(name, value));
  };
  // What was judged and how, or what came first and what then.
  const cell = value => h("td", {}, choice("cell", value, "", row => row.cell === value));
  const line = (words, right) =>
    h("tr", {}, h("th", {}, words), cell(`${right},true`), cell(`${right},false`));
  const [one, two] = rows.some(row => row.judges) ? ["response", "judged"] : ["first", "then"];
  const heads = ["", `${two} right`, `${two} wrong`].map(words => h("th", {}, words));
  const lines = [h("tr", {}, heads), line(`${one} right`, true), line(`${one} wrong`, false)];
  const roles = unique(rows.map(row => row.role));
  const there = Object.entries(ONLY).filter(([, [, test]]) => rows.some(test));
  return box(
    "filters",
    rows.some(row => row.cell) && h("table", {}, lines),
    box(
      "bar",
      soft("Find"),
      roles.map(role => choice("role", role, role, row => row.role === role)),
      there.map(([name, [label, test]]) => choice("only", name, label, test)),
      filtering() && button("next", "in the next step that has one", false, seek),
      filtering() && button("all", "show all", false, () => go({ role: "", cell: "", only: "" })),
    ),
  );
}

/** To the next step with a sample that passes the filters; after the last comes the first. */
function seek() {
  const steps = stepsOf("step");
  const order = [...steps.filter(step => step > state.step), ...steps];
  const step = order.find(step => samplesOf(step).some(passes));
  if (step !== undefined) go({ step, sample: samplesOf(step).find(passes).n });
}

/** All that was said about a question: responses, critiques of them; conversations. */
function chain(rows) {
  const of = role => rows.filter(row => row.role === role);
  const right = row => row.right;
  const grid = (name, list) => box(`grid ${name}`, list.map(row => card(row)));
  const prompt = list => {
    const shown = list.find(row => row.prompt !== undefined);
    const summary = h("summary", { class: "soft" }, "the prompt");
    return shown && h("details", {}, summary, h("pre", {}, run.texts[shown.prompt]));
  };
  const roles = ["response", "critique", "attempt 1", "attempt 2"];
  const [responses, critiques, first, second] = roles.map(of);
  const parts = [];
  if (responses.length) {
    const rewards = responses.map(row => row.reward);
    const mean = rewards.reduce((a, b) => a + b) / rewards.length;
    const variance = rewards.reduce((sum, r) => sum + (r - mean) ** 2, 0) / rewards.length;
    const why = ` \u00b7 rewards: mean ${number(mean)}, deviation ${number(Math.sqrt(variance))}`;
    parts.push(h("h3", {}, "Responses: ", share(responses, right), " right", soft(why)));
    parts.push(prompt(responses), grid("", responses));
  }
  // A response and the critiques of it, beside each other.
  const target = row => row.before ?? row.response ?? row.prompt;
  for (const key of unique(critiques.map(target))) {
    const group = critiques.filter(row => target(row) === key);
    const { before, of: is, response } = group[0];
    const name = before ? `response ${before.n}` : "a response of another step";
    const word = { true: "right", false: "wrong" }[is] ?? "(unknown)";
    const words = `Critiques of ${name}, which is ${word}: ${share(group, row => row.good)} say so`;
    const older = () => box("card", h("pre", {}, run.texts[response] ?? "(see the prompt)"));
    parts.push(h("h3", {}, words), prompt(group));
    parts.push(box("after", before ? card(before, undefined, true) : older(), grid("", group)));
  }
  // A first attempt and the second one after it, beside each other.
  if (first.length + second.length) {
    const words = `Attempts: at first ${share(first, right)} right, then ${share(second, right)}`;
    const alone = first.filter(row => !second.some(other => other.before === row));
    const before = row => row.before && card(row.before, undefined, passes(row));
    const pair = row => box("two", before(row), card(row, row.before));
    parts.push(h("h3", {}, words, CHANGED), prompt(second));
    parts.push(box("grid pairs", second.map(pair), alone.map(row => card(row))));
  }
  return parts;
}

function heading(question) {
  const answer = Object.hasOwn(run.answers, question) && run.answers[question];
  return h("h2", {}, question, answer && soft(` \u00b7 right answer: ${answer.slice(-200)}`));
}

function stepView() {
  const rows = samplesOf(state.step);
  if (!rows.length) {
    const steps = stepsOf("step");
    const near = steps.filter(step => step <= state.step).pop() ?? steps[0] ?? 0;
    const why = state.step ? "Of this step no texts are kept. " : "Step 0 only evaluates. ";
    const to = button("near", `step ${near}`, false, () => go({ step: near }));
    return [questions(), h("p", {}, why, to)];
  }
  const asked = unique(rows.map(row => row.question));
  const chosen = rows[Math.min(state.sample, rows.length) - 1].question;
  const tab = question => {
    const choose = () => go({ sample: rows.find(row => row.question === question).n });
    return button(`question ${question}`, question.slice(0, 60), question === chosen, choose);
  };
  return [
    box("top", questions(), filters(rows)),
    asked.length > 1 && box("bar", soft("Texts are kept of"), asked.map(tab)),
    heading(chosen),
    chain(rows.filter(row => row.question === chosen)),
  ];
}

// ------------------------------------------------------------------- the same questions again
function probeView() {
  const steps = stepsOf("probes");
  if (!steps.length) return h("p", {}, "This run asked no questions again at each evaluation.");
  const now = steps.filter(step => step <= state.step).pop() ?? steps[0];
  const asked = unique(samplesOf(now).map(row => row.question));
  const chosen = asked[Math.min(state.sample, asked.length) - 1];
  const at = (step, question) => samplesOf(step).filter(row => row.question === question);
  const cell = (step, question, index) => {
    const marks = at(step, question).map(row => (row.good ? "\u2713" : "\u2717"));
    const pressed = question === chosen && step === now;
    const choose = () => go({ step, sample: index + 1 });
    return h("td", {}, button(`${step} ${index}`, marks.join(" "), pressed, choose));
  };
  const line = (question, index) =>
    h("tr", {}, h("th", {}, question.slice(0, 60)), steps.map(step => cell(step, question, index)));
  const heads = ["", ...steps.map(step => `step ${step}`)].map(words => h("th", {}, words));
  const later = now === steps[0] ? [] : at(now, chosen);
  const pair = (row, i) => [card(row), later[i] ? card(later[i], row) : h("i")];
  const titles = [`Step ${steps[0]}`, later.length > 0 && [`Step ${now}`, CHANGED]];
  return [
    h("p", { class: "soft" }, "Held-out questions, asked at each evaluation with the same random ",
      "numbers: what differs is the policy. Marks: two attempts, a critique of the first."),
    box("scroll", h("table", {}, h("tr", {}, heads), asked.map(line))),
    heading(chosen),
    box("before", titles.map(title => h("h3", {}, title)), at(steps[0], chosen).map(pair)),
  ];
}

// ------------------------------------------------------------------------------------- curves
// [title, digits, [label, metrics of which the first that is there is drawn], ...]
const HELD_OUT = "held out, greedy";
const CURVES = [
  ["Answers right", 2, [HELD_OUT, "eval/generation"], ["training", "response/accuracy", "t1"]],
  ["Judgements right", 2, [HELD_OUT, "eval/critique"], ["training", "critique/accuracy"]],
  ["Second attempts right", 2, [HELD_OUT, "eval/t2"], ["training", "t2"]],
  ["Right reasons", 2, [HELD_OUT, "eval/critique_sound"], ["training", "critique/sound"]],
  ["Reward, mean", 2, ["answers", "response/accuracy"], ["critiques", "critique/reward"]],
  ["Length, tokens", 0, ["answers", "length/response", "length/attempt 1"],
    ["attempts 2", "length/attempt 2"], ["critiques", "length/critique"]],
  ["Entropy, nats a token", 3, ["training", "entropy"]],
  ["Zero-variance groups", 2, ["training", "groups/no_spread"]],
];
const cursors = [];

function curve([title, digits, ...series]) {
  const some = values => values?.some(value => value !== null);
  const lines = series
    .map(([label, ...names]) => [label, metrics[names.find(name => some(metrics[name]))]])
    .filter(([, values]) => values);
  if (!lines.length) return null;
  const drawn = lines.flatMap(([, values]) => values).filter(value => value !== null);
  const low = Math.min(...drawn);
  const high = Math.max(...drawn);
  const x = step => 36 + (220 * step) / (last || 1);
  const y = value => (high > low ? 66 - (58 * (value - low)) / (high - low) : 37);
  const draw = ([, values], k) => {
    const all = metrics.step.map((step, i) => [x(step), values[i]]);
    const points = all.filter(([, value]) => value !== null);
    const d = points.map(([at, value]) => `${at.toFixed(1)},${y(value).toFixed(1)}`).join("L");
    const dot = ([cx, value]) => h("circle", { cx, cy: y(value), r: 2.6, class: `c${k}` });
    return [h("path", { d: `M${d}`, class: `c${k}` }), points.length < 9 && points.map(dot)];
  };
  const axis = (value, y) => h("text", { x: 31, y, "text-anchor": "end" }, number(value, digits));
  const cursor = h("path", { class: "cursor" });
  const labels = lines.map((_, k) => h("span", { class: `c${k}` }));
  cursors.push(() => {
    const at = metrics.step.indexOf(state.step);
    cursor.setAttribute("d", `M${x(state.step)},4V70`);
    lines.forEach(([label, values], k) => {
      labels[k].textContent = `\u25cf ${label} ${number(values[at], digits)}`;
    });
  });
  const onclick = event => {
    const { left, width } = event.currentTarget.getBoundingClientRect();
    const part = ((264 * (event.clientX - left)) / width - 36) / 220;
    go({ step: Math.round(last * Math.min(1, Math.max(0, part))), sample: 1 });
  };
  const frame = h("path", { class: "axis", d: "M36,8H256M36,66H256" });
  const scale = high > low ? [axis(high, 12), axis(low, 70)] : axis(low, 41);
  const parts = [frame, scale, cursor, lines.map(draw)];
  const picture = h("svg", { viewBox: "0 0 264 78", onclick }, parts);
  return h("figure", {}, h("figcaption", {}, h("b", {}, title), labels), picture);
}

// ----------------------------------------------------------------------------------- the page
let address = "";
/** Change what is shown, and the address with it. */
function go(changed) {
  Object.assign(state, changed);
  const asked = Object.entries(state).filter(([k, v]) => typeof v === "number" || v !== START[k]);
  address = `#${new URLSearchParams(asked)}`;
  location.replace(address);
  show();
}

function show() {
  const focus = document.activeElement?.dataset.key;
  find("slider").value = state.step;
  find("step").textContent = `step ${state.step} of ${last}`;
  find("colour").value = colourName();
  cursors.forEach(update => update());
  const legend = colour()[2];
  const swatch = value => paint(h("i", {}, signed(value, value % 1 ? 1 : 0)), value, legend);
  find("legend").replaceChildren(...legend.map(swatch));
  for (const name of ["step", "probes"]) find(name + "View").ariaPressed = state.view === name;
  const parts = state.view === "step" ? stepView() : probeView();
  find("main").replaceChildren(...[parts].flat(9).filter(Boolean));
  find("readout").hidden = true;
  if (focus) document.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus();
}

/** What the address asks for, as far as there is such a thing. */
function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(START)) state[name] = asked.get(name) ?? START[name];
  state.step = Math.min(last, Math.max(0, Math.round(state.step) || 0));
  state.sample = Math.max(1, Math.round(state.sample) || 1);
  if (!Object.hasOwn(COLOURS, state.colour)) state.colour = START.colour;
  if (!Object.hasOwn(ONLY, state.only)) state.only = "";
  show();
  if (asked.has("sample")) document.querySelector(".chosen")?.scrollIntoView({ block: "center" });
}

/** To the next step, or to the next sample that passes the filters. */
function move(name, by) {
  const samples = () => samplesOf(state.step).filter(passes).map(row => row.n);
  const numbers = state.view === "step" ? samples() : [1, 2, 3, 4, 5, 6, 7, 8];
  const beyond = (name === "step" ? metrics.step : numbers).filter(n => by * (n - state[name]) > 0);
  if (beyond.length) go({ [name]: by > 0 ? beyond[0] : beyond.at(-1) });
  if (name === "sample") document.querySelector(".chosen")?.scrollIntoView({ block: "nearest" });
}

const KEYS = { Left: ["step", -1], Right: ["step", 1], Up: ["sample", -1], Down: ["sample", 1] };
addEventListener("keydown", event => {
  const key = KEYS[event.key.replace("Arrow", "")];
  const taken = event.target.closest?.("input, select") || event.ctrlKey || event.altKey;
  if (!key || taken || event.metaKey) return;
  event.preventDefault();
  move(...key);
});
addEventListener("hashchange", () => location.hash === address || fromAddress());
for (const kind of ["pointerover", "focusin"]) addEventListener(kind, read);
on("back", "click", () => move("step", -1));
on("on", "click", () => move("step", 1));
on("stepView", "click", () => go({ view: "step", sample: 1 }));
on("probesView", "click", () => go({ view: "probes", sample: 1 }));
find("slider").max = last;
on("slider", "input", event => go({ step: Number(event.target.value) }));
const options = Object.entries(COLOURS).map(([value, [label]]) => h("option", { value }, label));
find("colour").append(...options);
on("colour", "change", event => go({ colour: event.target.value }));
find("curves").append(...CURVES.map(curve).filter(Boolean));

// The title, and what has come out.
find("title").append(visible(`${method} on ${model}`));
let path = location.pathname;
try {
  path = decodeURI(path);
} catch {} // a name that is not UTF-8
document.title = visible(`${path.split("/").at(-2)}: ${method}`);
for (const [title, , [, name]] of CURVES.slice(0, 3)) {
  const values = (metrics[name] ?? []).filter(value => value !== null);
  const numbers = `${number(values[0])} \u2192 ${number(values.at(-1))} `;
  if (values.length) find("gains").append(h("span", {}, h("b", {}, numbers), soft(title)));
}
fromAddress();
