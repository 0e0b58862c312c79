"use strict";
// The page of a run. Every text, whoever wrote it, becomes a text node: nothing here makes HTML of it.

// ---- Elements ----

/** An element with properties (on*: listeners, others: attributes) and children; null and false are left out. */
function h(name, properties = {}, ...children) {
  return build(document.createElement(name), properties, children);
}
function s(name, properties = {}, ...children) {
  return build(document.createElementNS("http://www.w3.org/2000/svg", name), properties, children);
}
function build(element, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value != null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}
const words = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const figure = (value, digits = 3) => (value == null ? "–" : value.toFixed(digits).replace("-", "−"));
const signed = (value) => (value > 0 ? "+" : "") + figure(value);
const text = (value, className = "text") => h("div", { class: className, dir: "auto", tabindex: long(value) ? 0 : null }, value);
const long = (value) => value.length > 1500; // such a text scrolls, and must be reached by keyboard

// ---- Data: gzipped JSON in base64, unpacked when it is first looked at ----

const parts = new Map();
function part(name) {
  if (!parts.has(name)) parts.set(name, unpack(document.getElementById(`part-${name}`)));
  return parts.get(name);
}
async function unpack(element) {
  const packed = element.textContent;
  element.remove();
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(packed) : Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// ---- Where one is: all of it in the link ----

let data;
const where = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
/** A link to here, but for what is changed; null takes a key away. */
function link(changes) {
  const kept = Object.entries({ ...where(), ...changes }).filter(([, value]) => value != null && value !== "");
  return `#${new URLSearchParams(kept)}`;
}
const go = (changes) => (location.hash = link(changes));
/** As `go`, without a step for the browser's "back". */
function change(changes) {
  history.replaceState(null, "", link(changes));
  show();
}

// ---- A list that draws only what is on the screen ----

const ROW = 48;
function list(label, count, draw, isSelected, choose) {
  const inner = h("div", { role: "presentation" });
  const box = h("div", { class: "list", role: "listbox", tabindex: 0, "aria-label": label, onscroll: render, onkeydown: keys }, inner);
  inner.style.height = `${count * ROW}px`;
  let selected = -1;
  for (let i = 0; i < count && selected < 0; i++) if (isSelected(i)) selected = i;
  function render() {
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 5);
    const last = Math.min(count, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + 5);
    inner.replaceChildren();
    for (let i = first; i < last; i++) {
      const row = h("div", { class: "row", role: "option", id: `row-${i}`, "aria-selected": String(i === selected), "aria-setsize": count,
        "aria-posinset": i + 1, onclick: () => choose(i) }, ...draw(i));
      row.style.top = `${i * ROW}px`;
      inner.append(row);
    }
    if (selected >= first && selected < last) box.setAttribute("aria-activedescendant", `row-${selected}`);
    else box.removeAttribute("aria-activedescendant");
  }
  const moves = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  function keys(event) {
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    move(moves[event.key]);
  }
  /** Chooses the row so many places further, if there is one. */
  function move(by) {
    const to = Math.min(count - 1, Math.max(0, selected < 0 ? 0 : selected + by));
    if (count && to !== selected) choose(to);
  }
  function reveal() {
    if (selected >= 0 && (selected * ROW < box.scrollTop || (selected + 1) * ROW > box.scrollTop + box.clientHeight))
      box.scrollTop = selected * ROW - box.clientHeight / 2;
    render();
  }
  return { box, move, reveal };
}

// ---- Pieces ----

function table(of) {
  const heading = (column) => h("th", { scope: "col", class: column.right ? "number" : null }, column.name);
  const cells = (row) => row.map((cell, i) => h("td", { class: of.columns[i].right ? "number" : null, dir: "auto" }, cell));
  return h("div", { class: "tables" },
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": of.title },
      h("table", {}, h("caption", {}, of.title), h("thead", {}, h("tr", {}, of.columns.map(heading))),
        h("tbody", {}, of.rows.map((row) => h("tr", {}, cells(row)))))),
    of.caption && h("p", { class: "caption" }, of.caption));
}
function facts(pairs) {
  return h("dl", {}, pairs.filter(([, value]) => value != null && value !== "").map(([name, value]) => [h("dt", {}, name), h("dd", { dir: "auto" }, value)]));
}
function choice(label, options, value, change) {
  const items = options.map(([key, name]) => h("option", { value: key, selected: key === value }, name));
  return h("label", {}, label, h("select", { onchange: (event) => change(event.target.value) }, items));
}

// ---- Plots ----

const W = 460, H = 260, LEFT = 46, BOTTOM = 36;
const COLORS = 6; // --c0 to --c5 in the style
const color = (i) => `var(--c${i % COLORS})`;
// Circle, square, diamond, and triangles up and down: the next shape where the colours begin again.
const SHAPES = ["M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0Z", "M-4-4H4V4H-4Z", "M0-5.5L5.5 0L0 5.5L-5.5 0Z", "M0-5L5 4H-5Z", "M0 5L5-4H-5Z"];
const marker = (i, at = "0 0") => s("path", { class: "marker", d: SHAPES[Math.floor(i / COLORS) % SHAPES.length], fill: color(i), transform: `translate(${at})` });
const FATES = { kept: 2, "not kept": 1, dropped: 1 }; // the colours of rationales, in every plot
function scale(low, high, from, to, logarithmic) {
  const f = logarithmic ? Math.log10 : (x) => x;
  const width = f(high) - f(low) || 1;
  return (x) => from + ((f(x) - f(low)) / width) * (to - from);
}
/** At least three round numbers from low to high. */
function ticks(low, high, logarithmic) {
  if (logarithmic) {
    for (const digits of [[1], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]]) {
      const all = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) for (const digit of digits) all.push(digit * 10 ** e);
      const inside = all.filter((x) => x >= low && x <= high);
      if (inside.length >= 3) return inside;
    }
  }
  const step = 10 ** Math.floor(Math.log10((high - low) / 3 || 1));
  const wide = [1, 2, 5, 10].map((m) => m * step).find((w) => (high - low) / w <= 7.5);
  const all = [];
  for (let i = Math.ceil(low / wide); i * wide <= high + 1e-9; i++) all.push(i * wide);
  return all;
}
const PREFIXES = { E: ["10¹⁸", 1e18], P: ["10¹⁵", 1e15], T: ["10¹²", 1e12], G: ["10⁹", 1e9], M: ["10⁶", 1e6], k: ["10³", 1e3] };
/** A number with three digits, 1000 and more with a prefix: 300M. */
function short(x) {
  const rounded = +x.toPrecision(3);
  const [prefix, [, unit]] = Object.entries(PREFIXES).find(([, [, least]]) => Math.abs(rounded) >= least) ?? ["", ["", 1]];
  return `${+(rounded / unit).toPrecision(3)}${prefix}`.replace("-", "−");
}
/** What an axis is called, and what the prefixes of its numbers mean. */
function titleOf(label, numbers) {
  const used = Object.entries(PREFIXES).filter(([prefix]) => numbers.some((number) => number.endsWith(prefix)));
  return used.length ? `${label}, ${used.reverse().map(([prefix, [power]]) => `${prefix} = ${power}`).join(", ")}` : label;
}
/** A frame with axes; x and y: {low, high, label, log}. draw gets both scales and gives what is inside.
 * legend: names and the number of their colour and shape. */
function plot(title, x, y, draw, legend, caption) {
  const px = scale(x.low, x.high, LEFT, W - 12, x.log);
  const py = scale(y.low, y.high, H - BOTTOM, 10, y.log);
  const numbered = (axis) => ticks(axis.low, axis.high, axis.log).map((value) => [value, short(value)]);
  const across = x.named ?? numbered(x);
  const up = numbered(y);
  const named = x.named ? x.label : titleOf(x.label, across.map(([, label]) => label));
  const axes = [
    s("line", { x1: LEFT, x2: W - 12, y1: H - BOTTOM, y2: H - BOTTOM, stroke: "var(--dim)" }),
    across.map(([value, label]) => s("text", { class: "across", x: px(value), y: H - BOTTOM + 14, "text-anchor": "middle" }, label)),
    up.map(([value, label]) => [
      s("line", { x1: LEFT, x2: W - 12, y1: py(value), y2: py(value), stroke: "var(--line)" }),
      s("text", { class: "up", x: LEFT - 5, y: py(value) + 4, "text-anchor": "end" }, label)]),
    s("text", { x: (LEFT + W) / 2, y: H - 4, "text-anchor": "middle" }, named),
    s("text", { x: 12, y: H / 2 - 10, transform: `rotate(-90 12 ${H / 2 - 10})`, "text-anchor": "middle" }, titleOf(y.label, up.map(([, label]) => label))),
  ];
  const key = legend.map(([name, i]) => h("li", {}, s("svg", { viewBox: "-6 -6 12 12", "aria-hidden": "true" }, marker(i)), name));
  return h("figure", {}, h("figcaption", {}, title),
    s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title }, axes, draw(px, py)), h("ul", { class: "legend" }, key), caption && h("p", { class: "caption" }, caption));
}
const tip = (label) => s("title", {}, label);
const bar = (x, [mean, low, high], py, i, label) => s("g", { stroke: color(i) }, tip(label),
  s("line", { x1: x, x2: x, y1: py(100 * low), y2: py(100 * high), "stroke-width": 2 }), marker(i, `${x} ${py(100 * mean)}`));
const percents = ([mean, low, high]) => `${(100 * mean).toFixed(1)} % [${(100 * low).toFixed(1)}, ${(100 * high).toFixed(1)}]`;
const accuracy = { low: 0, high: 100, label: "accuracy (%), 95 % interval" };

// Where a label may stand from its point, the nearest place first.
const PLACES = [8, -8, 24, -24, 40, -40].flatMap((dx) => [0, 1, 2, 3, 4, 5, 6].flatMap((n) => [[dx, -12 * n], [dx, 12 * n]]))
  .sort((one, other) => Math.hypot(...one) - Math.hypot(...other));
/** The numbers of points {x, y, top, bottom, label}, where they cover neither one another nor a point or its interval;
 * those that stand further off have a line to their point. */
function labels(points) {
  const taken = points.flatMap(({ x, y, top, bottom }) => [[x - 6, y - 6, x + 6, y + 6], [x - 1, top, x + 1, bottom]]);
  const apart = (one, other) => one[2] <= other[0] || other[2] <= one[0] || one[3] <= other[1] || other[3] <= one[1];
  const isFree = (box) => box[0] >= LEFT && box[2] <= W && box[1] >= 0 && box[3] <= H - BOTTOM && taken.every((other) => apart(box, other));
  const lines = []; // under all numbers
  const numbers = points.map(({ x, y, label }) => {
    const width = 7 * label.length;
    const boxAt = ([dx, dy]) => (dx > 0 ? [x + dx, y + dy - 6, x + dx + width, y + dy + 6] : [x + dx - width, y + dy - 6, x + dx, y + dy + 6]);
    const place = PLACES.find((one) => isFree(boxAt(one))) ?? PLACES[0];
    const [dx, dy] = place;
    taken.push(boxAt(place));
    if (Math.hypot(dx, dy) > 8) lines.push(s("line", { x1: x, y1: y, x2: x + dx, y2: y + dy, stroke: "var(--dim)" }));
    return s("text", { class: "label", x: x + dx, y: y + dy + 4, "text-anchor": dx > 0 ? "start" : "end" }, label);
  });
  return [...lines, ...numbers];
}
function costPlot({ title, points }, by, label) {
  const known = points.map((point, i) => ({ ...point, i })).filter((point) => point[by] > 0);
  if (!known.length) return null;
  const values = known.map((point) => point[by]);
  const x = { low: Math.min(...values) * 0.8, high: Math.max(...values) * 1.25, label, log: true };
  const draw = (px, py) => [
    labels(known.map(({ i, interval: [mean, low, high], [by]: value }) => ({ x: px(value), y: py(100 * mean), top: py(100 * high), bottom: py(100 * low), label: String(i + 1) }))),
    known.map((point) => bar(px(point[by]), point.interval, py, point.i, `${point.name}: ${percents(point.interval)}, ${label} ${short(point[by])}`))];
  return plot(`${title}: accuracy against ${label}`, x, accuracy, draw, known.map(({ i, name }) => [`${i + 1} ${name}`, i]));
}
function curvePlot({ title, label, x, lines }) {
  const named = x.map((value, i) => [i, String(value)]);
  const draw = (px, py) => Object.entries(lines).map(([name, points], n) => points.map((interval, i) =>
    bar(px(i) + 5 * n, interval, py, n, `${name}, ${x[i]}: ${percents(interval)}`)));
  return plot(title, { low: -0.3, high: x.length - 0.7, label, named }, accuracy, draw, Object.keys(lines).map((name, i) => [name, i]));
}
function lossPlot({ title, lines }) {
  const shown = Object.entries(lines).filter(([, points]) => points.length);
  const all = shown.flatMap(([, points]) => points);
  const x = { low: 0, high: Math.max(...all.map((p) => p[0])), label: "step" };
  const y = { low: 0, high: Math.max(...all.map((p) => p[1])) * 1.05, label: "nats per target token" };
  const path = (points, px, py) => points.map(([a, b], i) => `${i ? "L" : "M"}${px(a).toFixed(1)} ${py(b).toFixed(1)}`).join("");
  const draw = (px, py) => shown.map(([, points], i) => [
    s("path", { d: path(points, px, py), fill: "none", stroke: color(i), "stroke-width": 1.6 }),
    points.length < 30 ? points.map(([a, b]) => s("circle", { cx: px(a), cy: py(b), r: 3, fill: color(i) }, tip(`step ${a}: ${figure(b)}`))) : null]);
  return plot(`loss of ${title}`, x, y, draw, shown.map(([name], i) => [{ loss: "training", val_loss: "validation" }[name], i]));
}
function gainPlot({ title, edges, counts, taus }) {
  const names = Object.keys(counts);
  const totals = counts[names[0]].map((_, i) => names.reduce((sum, name) => sum + counts[name][i], 0));
  const x = { low: edges[0], high: edges.at(-1), label: "gain of the following text (nats)" };
  const y = { low: 0.5, high: Math.max(...totals, 1) * 1.2, label: "rationales", log: true };
  const draw = (px, py) => [
    totals.map((total, i) => {
      const from = (name, n) => {
        const below = n ? counts[names[0]][i] : 0;
        const top = below + counts[name][i];
        if (top === below) return null;
        return s("rect", { x: px(edges[i]), width: Math.max(1, px(edges[i + 1]) - px(edges[i]) - 0.5), y: py(top), height: py(Math.max(below, 0.5)) - py(top), fill: color(FATES[name]) });
      };
      const span = i === 0 ? `below ${figure(edges[1])}` : i === totals.length - 1 ? `${figure(edges[i])} and more` : `${figure(edges[i])} to ${figure(edges[i + 1])}`;
      return s("g", {}, tip(`${span}: ${names.map((name) => `${counts[name][i]} ${name}`).join(", ")}`), names.map(from));
    }),
    taus.filter((tau) => tau >= edges[0] && tau <= edges.at(-1)).map((tau) => [
      s("line", { x1: px(tau), x2: px(tau), y1: 10, y2: H - BOTTOM, stroke: "var(--text)", "stroke-dasharray": "4 3" }),
      s("text", { x: px(tau) + 4, y: 20 }, `τ = ${tau}`)])];
  return plot(`gains, ${title}`, x, y, draw, names.map((name) => [name, FATES[name]]), "The outermost bins also hold everything beyond them.");
}
function funnel({ title, bars }) {
  const most = Math.max(...bars.map(([, count]) => count), 1);
  const paint = (name) => color(FATES[name.split(":")[0]] ?? 0);
  const row = ([name, count], i) => s("g", {}, s("text", { x: 2, y: i * 24 + 16 }, name.replaceAll("_", " ")),
    s("rect", { x: 130, y: i * 24 + 4, width: Math.max(1, (count / most) * (W - 200)), height: 16, fill: paint(name) }),
    s("text", { x: 136 + (count / most) * (W - 200), y: i * 24 + 16 }, count.toLocaleString("en")));
  return h("figure", {}, h("figcaption", {}, `${title}: from documents to kept rationales`),
    s("svg", { viewBox: `0 0 ${W} ${bars.length * 24 + 4}`, role: "img", "aria-label": bars.map(([name, count]) => `${name} ${count}`).join(", ") }, bars.map(row)));
}

function overview(main) {
  const costs = data.costs.flatMap((cost) => [costPlot(cost, "flops", "FLOPs of a question"), costPlot(cost, "tokens", "tokens computed for a question")]);
  const pairs = (title, object) => h("details", {}, h("summary", {}, title), facts(object));
  main.append(
    h("h2", {}, "What came out"),
    ...data.notes.map((note) => h("p", { class: "note" }, note)),
    ...data.tables.map(table),
    h("h2", {}, "Plots"),
    h("div", { class: "plots" }, costs, data.curves.map(curvePlot), data.funnels.map(funnel), data.gains.map(gainPlot), data.losses.map(lossPlot)),
    h("h2", {}, "How it was made"),
    data.settings.length ? pairs("settings", data.settings) : "",
    Object.keys(data.versions).length ? pairs("versions of packages", Object.entries(data.versions)) : "",
    Object.keys(data.seconds).length ? pairs("seconds of each stage", Object.entries(data.seconds).map(([name, value]) => [name, value.toFixed(1)])) : "");
}

// ---- Questions ----

const VERDICTS = ["right", "wrong", "unanswered", "undecided"];
const finishesOf = (run) => [...new Set(run.rows.map((row) => row[4]))].sort();
/** The filters of a link; a value that is none of a filter's is left out. */
function filtersOf(at, run) {
  const values = { verdict: VERDICTS, flip: ["right", "wrong"], finish: finishesOf(run), flag: Object.keys(data.flags) };
  const known = Object.entries(values).filter(([key, all]) => all.includes(at[key])).map(([key]) => [key, at[key]]);
  return { ...Object.fromEntries(known), search: at.search ?? "", margin: Number.isFinite(Number(at.margin)) ? at.margin ?? "" : "" };
}
/** What the link says of questions: the set, the run, and the one it is compared with. */
function chosen() {
  const at = where();
  const runAnywhere = data.sets.find((set) => set.runs.some((run) => run.name === at.run));
  const set = data.sets.find((one) => one.title === at.set) ?? runAnywhere ?? data.sets[0];
  const run = set.runs.find((one) => one.name === at.run) ?? set.runs.find((one) => one.strategy === "implicit") ?? set.runs.at(-1);
  const others = set.runs.filter((one) => one !== run);
  const versus = at.vs === "none" ? null : others.find((one) => one.name === at.vs) ?? others.find((one) => one.strategy === "likelihood") ?? others[0] ?? null;
  const sample = Math.max(0, Math.min(run.samples - 1, Math.trunc(Number(at.sample)) || 0));
  return { set, run, versus, sample, at, filters: filtersOf(at, run) };
}
/** A line of a list by the columns of its row; `n` is its place in the run's part. */
function line(run, n) {
  const [question, sample, verdict, answer, finish, steps, margin, flags] = run.rows[n];
  return { n, question, sample, verdict, answer, finish, steps, margin, flags };
}
const pairOf = (run, { question, sample }) => line(run, question * run.samples + (sample % run.samples));

/** The numbers of the rows that the filters of a link leave. */
async function filtered({ set, run, versus, filters }) {
  const wanted = filters.search.toLowerCase().split(/\s+/).filter(Boolean);
  const traces = wanted.length ? await part(run.part) : null;
  const holds = (one) => {
    const question = set.questions[one.question];
    const steps = traces[one.n]?.steps.map((step) => `${step.text}\n${step.rationale ?? ""}`) ?? [];
    const all = [question.id, question.text, question.gold, one.answer ?? "", ...steps].join("\n").toLowerCase();
    return wanted.every((word) => all.includes(word));
  };
  const passes = (one) => {
    if (filters.verdict && one.verdict !== filters.verdict) return false;
    if (filters.finish && one.finish !== filters.finish) return false;
    if (filters.flag && !one.flags.includes(filters.flag)) return false;
    if (filters.margin && !(one.margin != null && one.margin < Number(filters.margin))) return false;
    if (filters.flip && versus) {
      const before = pairOf(versus, one).verdict === "right";
      const now = one.verdict === "right";
      if (before === now || now !== (filters.flip === "right")) return false;
    }
    return !wanted.length || holds(one);
  };
  return run.rows.map((_, n) => n).filter((n) => passes(line(run, n)));
}

let shownList; // the list on the screen, for keys pressed elsewhere on the page
let asked = 0;
async function questions(main) {
  const ticket = ++asked;
  const here = chosen();
  const { set, run, versus, sample, at, filters } = here;
  const rows = await filtered(here);
  if (ticket !== asked) return;
  const names = set.runs.map((one) => [one.name, one.name]);
  const any = [["", "any"]];
  const search = h("input", { type: "search", value: filters.search, onchange: (event) => change({ search: event.target.value }), id: "search" });
  const controls = h("div", { class: "controls filters", role: "search", "aria-label": "filters" },
    data.sets.length > 1 && choice("questions of", data.sets.map((one) => [one.title, one.title]), set.title, (value) => change({ set: value, run: null, vs: null, q: null })),
    choice("run", names, run.name, (value) => change({ run: value, vs: value === versus?.name ? run.name : at.vs })),
    choice("graded", [...any, ...VERDICTS.map((one) => [one, one])], filters.verdict ?? "", (value) => change({ verdict: value })),
    names.length > 1 && choice("compared with", [["none", "nothing"], ...names.filter(([name]) => name !== run.name)], versus?.name ?? "none", (value) => change({ vs: value })),
    versus && choice("flipped", [["", "any"], ["right", "wrong there, right here"], ["wrong", "right there, wrong here"]], filters.flip ?? "", (value) => change({ flip: value })),
    choice("ended by", [...any, ...finishesOf(run).map((one) => [one, one])], filters.finish ?? "", (value) => change({ finish: value })),
    choice("where", [...any, ...Object.entries(data.flags)], filters.flag ?? "", (value) => change({ flag: value })),
    h("label", {}, "margin below", h("input", { type: "number", min: 0, step: "any", value: filters.margin, onchange: (event) => change({ margin: event.target.value }) })),
    h("label", {}, "search in texts", search));
  const status = h("p", { role: "status", class: "filters dim" }, `${words(rows.length, "question")} of ${run.rows.length.toLocaleString("en")}`);
  const draw = (i) => {
    const one = line(run, rows[i]);
    const question = set.questions[one.question];
    const before = versus && pairOf(versus, one).verdict;
    const sample = run.samples > 1 ? `, sample ${one.sample}` : "";
    return [h("div", {}, h("span", { class: one.verdict }, one.verdict), before && before !== one.verdict ? ` (there ${before})` : "", ` · ${question.id}${sample} · ${words(one.steps, "step")}`),
      h("div", { class: "dim", dir: "auto" }, question.text.slice(0, 200))];
  };
  const place = (one) => ({ q: set.questions[one.question].id, sample: one.sample || null });
  const isSelected = (i) => {
    const one = line(run, rows[i]);
    return set.questions[one.question].id === at.q && one.sample === sample;
  };
  shownList = list("questions", rows.length, draw, isSelected, (i) => go({ ...place(line(run, rows[i])), run: run.name }));
  const detail = h("article", { "aria-live": "off" });
  const open = at.q != null;
  main.append(h("h2", {}, `Questions: ${set.title}`), controls, status, h("div", { class: open ? "two open" : "two" }, shownList.box, detail));
  main.classList.toggle("open", open);
  shownList.reveal();
  if (!open) detail.append(h("p", { class: "dim" }, "Choose a question. Keys: j and k or the arrows go on and back, / goes to the search, Escape to the list."));
  else await question(detail, here);
}

async function question(detail, { set, run, versus, sample, at }) {
  detail.append(h("a", { class: "back", href: link({ q: null, sample: null }) }, "back to the list"));
  const number = set.questions.findIndex((one) => one.id === at.q);
  if (number < 0) return detail.append(h("p", {}, `There is no question ${at.q} in ${set.title}.`));
  const of = set.questions[number];
  const runs = versus ? [run, versus] : [run];
  const lines = runs.map((one) => pairOf(one, { question: number, sample }));
  const traces = [];
  for (const [i, one] of runs.entries()) traces.push((await part(one.part))[lines[i].n]);
  const texts = traces.map((trace) => trace?.steps.map((step) => step.text) ?? []);
  const both = traces.length > 1 && traces.every(Boolean);
  const longest = both ? Math.max(...texts.map((one) => one.length)) : 0;
  let parting = -1;
  for (let i = 0; i < longest && parting < 0; i++) if (texts[0][i] !== texts[1][i]) parting = i;
  detail.append(
    h("h3", {}, of.id), text(of.text, "text question"),
    of.choices ? h("dl", {}, of.choices.map(([letter, option]) => [h("dt", {}, letter), h("dd", { dir: "auto" }, option)])) : "",
    facts([["gold answer", of.gold], ["subject", of.subject], ["level", of.level]]),
    of.solution ? h("details", {}, h("summary", {}, "the data's own solution"), text(of.solution)) : "");
  if (both) detail.append(h("p", { class: "parting" }, parting < 0 ? "Both wrote the same steps." : `The two part at step ${parting + 1}.`));
  detail.append(h("div", { class: "sides" }, runs.map((one, i) => side(one, lines[i], traces[i], both ? parting : -1))));
}

function side(run, one, trace, parting) {
  const sample = run.samples > 1 ? `, sample ${one.sample}` : "";
  const head = [h("h3", {}, `${run.name}${sample}`),
    h("p", {}, h("span", { class: `badge ${one.verdict}` }, one.verdict), `answer ${one.answer ?? "none"}, ended by ${one.finish}`, one.margin == null ? "" : `, smallest margin ${figure(one.margin)}`)];
  if (!trace) return h("section", { "aria-label": run.name }, head, h("p", { class: "note" }, "Its steps were left out of this page: see the notes of the overview."));
  const steps = trace.steps.map((step, i) => stepItem(step, i, i === trace.steps.length - 1 ? trace.answer_at : null, i === parting));
  return h("section", { "aria-label": run.name }, head, h("ol", { class: "steps" }, steps), samplesOf(trace), ledger(trace));
}
/** A text in which the answer is marked, where it stands there. */
function withAnswer(value, at) {
  if (!at) return text(value);
  const pieces = [...value]; // places count characters, as Python does
  const cut = (from, to) => pieces.slice(from, to).join("");
  return h("div", { class: "text", dir: "auto", tabindex: long(value) ? 0 : null }, cut(0, at[0]), h("mark", { title: "the answer as it was read" }, cut(at[0], at[1])), cut(at[1]));
}
function stepItem(step, number, answerAt, parts) {
  const rationale = step.rationale == null ? null : h("div", { class: "rationale" },
    h("div", {}, h("span", { class: "badge" }, step.guided ? "rationale, in a context" : "rationale, in no context"), step.rationale_finish === "length" && h("span", { class: "badge wrong" }, "cut off")),
    step.rationale.trim() ? text(step.rationale) : h("em", {}, "empty"));
  return h("li", { class: parts ? "parts" : null },
    h("div", {}, h("span", { class: "dim" }, `step ${number + 1} `), parts && h("span", { class: "badge parting" }, "here they part"), step.finish === "length" && h("span", { class: "badge wrong" }, "cut off"), step.finish === "end" && h("span", { class: "badge" }, "ends the turn")),
    rationale, withAnswer(step.text, answerAt), candidates(step));
}
function candidates(step) {
  if (step.candidates.length === 1 && !step.scores && !step.notes) return null;
  if (!step.scores && !step.notes && new Set(step.candidates).size === 1) return h("p", { class: "dim" }, `All ${step.candidates.length} candidates are this text.`);
  const has = (key) => step[key] != null;
  const marks = (i) => [i === step.choice && "taken", i === step.likelihood && "likelihood's"].filter(Boolean).join(", ");
  const cells = (candidate, i) => [h("td", { class: "marks" }, marks(i)), h("td", { dir: "auto" }, has("gains") ? gained(step.gains[i]) : text(candidate)), has("scores") && h("td", { class: "number" }, figure(step.scores[i])),
    has("margins") && h("td", { class: "number" }, signed(step.margins[i])), has("scores_without") && h("td", { class: "number" }, figure(step.scores_without[i])), has("notes") && h("td", { dir: "auto" }, text(step.notes[i]))];
  const heads = ["", "candidate", has("scores") && "score", has("margins") && "margin", has("scores_without") && "without", has("notes") && "what was written about it"].filter((name) => name !== false);
  return h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "candidates" }, h("table", {}, h("thead", {}, h("tr", {}, heads.map((name) => (name ? h("th", { scope: "col" }, name) : h("td"))))),
    h("tbody", {}, step.candidates.map((candidate, i) => h("tr", { class: i === step.choice ? "taken" : null }, cells(candidate, i))))));
}
/** A candidate token by token, in the colour of what the rationale does to it: green likelier, red less likely. */
function gained({ tokens, logprobs_with, logprobs_without }) {
  const span = (token, i) => {
    const gain = logprobs_with[i] - logprobs_without[i];
    const share = Math.min(1, Math.abs(gain) / 2); // two nats are as dark as it gets
    const element = h("span", { class: "token", title: `${signed(gain)} nats: ${figure(logprobs_with[i])} with the rationale, ${figure(logprobs_without[i])} without` }, i === tokens.length - 1 ? token.trimEnd() : token);
    if (share > 0.02) element.style.background = `color-mix(in srgb, var(${gain > 0 ? "--gain" : "--loss"}) ${Math.round(70 * share)}%, transparent)`;
    return element;
  };
  return h("div", { class: "text", dir: "auto" }, tokens.map(span));
}
function samplesOf(trace) {
  if (!trace.samples.length) return null;
  const item = (sample) => h("li", {}, `answer ${sample.answer ?? "none"}, ended by ${sample.finish}`, text(sample.steps.join("\n")));
  return h("details", {}, h("summary", {}, words(trace.samples.length, "whole solution")), h("ol", {}, trace.samples.map(item)));
}
function ledger(trace) {
  const columns = ["requests", "generated", "prefilled", "cached", "scored", "flops"];
  const rows = Object.entries(trace.tokens).map(([role, used]) => [role, ...columns.map((key) => used[key].toLocaleString("en"))]);
  const of = { title: `ledger: ${trace.seconds.toFixed(1)} s`, columns: ["role", ...columns].map((name, i) => ({ name, right: i > 0 })), rows };
  return h("details", {}, h("summary", {}, "what it took"), table(of));
}

// ---- Mined rationales ----

async function mined(main) {
  const at = where();
  const round = data.mining.find((one) => one.title === at.round) ?? data.mining[0];
  const wanted = (at.search ?? "").toLowerCase();
  const texts = wanted || at.doc ? await part(round.part) : null;
  const holds = (i) => [texts[i].text, ...texts[i].rationales.map((one) => one.text), round.documents[i][0]].join("\n").toLowerCase().includes(wanted);
  const keeps = { "": () => true, some: (kept) => kept > 0, none: (kept, count) => kept === 0 && count > 0, without: (_, count) => count === 0 };
  const keep = Object.hasOwn(keeps, at.kept) ? at.kept : "";
  const rows = round.documents.map((_, i) => i).filter((i) => keeps[keep](round.documents[i][3], round.documents[i][2]) && (!wanted || holds(i)));
  const controls = h("div", { class: "controls filters", role: "search", "aria-label": "filters" },
    data.mining.length > 1 && choice("round", data.mining.map((one) => [one.title, one.title]), round.title, (value) => change({ round: value, doc: null })),
    choice("rationales kept", [["", "any"], ["some", "at least one"], ["none", "none"], ["without", "there are none"]], keep, (value) => change({ kept: value })),
    h("label", {}, "search in texts", h("input", { type: "search", id: "search", value: at.search ?? "", onchange: (event) => change({ search: event.target.value }) })));
  const draw = (i) => {
    const [id, source, count, kept, best, why] = round.documents[rows[i]];
    const found = count ? `${words(count, "rationale")}, ${kept} kept · best gain ${figure(best)}` : `no usable rationale: ${why}`;
    return [h("div", {}, id), h("div", { class: "dim" }, `${source} · ${found}`)];
  };
  const detail = h("article");
  shownList = list("documents", rows.length, draw, (i) => round.documents[rows[i]][0] === at.doc, (i) => go({ doc: round.documents[rows[i]][0] }));
  main.append(h("h2", {}, "Mined rationales"), controls,
    h("p", { role: "status", class: "filters dim" }, `${words(rows.length, "document")} of ${round.documents.length.toLocaleString("en")}`),
    h("div", { class: at.doc ? "two open" : "two" }, shownList.box, detail));
  main.classList.toggle("open", Boolean(at.doc));
  shownList.reveal();
  detail.append(h("a", { class: "back", href: link({ doc: null }) }, "back to the list"));
  const number = round.documents.findIndex(([id]) => id === at.doc);
  if (number < 0) return detail.append(h("p", { class: "dim" }, at.doc ? `There is no document ${at.doc} here.` : "Choose a document."));
  const [id, source, count, , , why] = round.documents[number];
  const { wrote } = texts[number];
  detail.append(h("h3", {}, id), h("p", { class: "dim" }, `from ${source}`),
    count ? "" : h("p", {}, `No usable rationale: ${why}.`), ...inPlace(texts[number]),
    wrote ? h("details", {}, h("summary", {}, "what the model wrote"), text(wrote)) : "");
}
/** A document with its rationales where they were found. */
function inPlace(document) {
  const pieces = [...document.text];
  const all = [];
  let from = 0;
  for (const one of document.rationales) {
    if (one.start > from) all.push(text(pieces.slice(from, one.start).join("")));
    from = Math.max(from, one.start);
    const gain = one.gain == null ? "not scored" : `gain ${signed(one.gain)} nats (${figure(one.with)} with, ${figure(one.without)} without; τ ${one.tau})`;
    all.push(h("div", { class: one.kept ? "rationale kept" : "rationale" }, text(one.text),
      h("div", {}, h("span", { class: one.kept ? "badge right" : "badge wrong" }, one.kept ? "kept" : "not kept"), `${one.reason.replaceAll("_", " ")}; ${gain}`)));
  }
  return [...all, text(pieces.slice(from).join(""))];
}

// ---- The frame ----

const VIEWS = { overview: ["Overview", overview], questions: ["Questions", questions], mined: ["Mined rationales", mined] };
/** The views that this run has something for. */
const offered = () => Object.keys(VIEWS).filter((key) => key === "overview" || data[{ questions: "sets", mined: "mining" }[key]].length);
function view() {
  const at = where();
  const wanted = at.view ?? (at.q || at.run ? "questions" : "overview");
  return offered().includes(wanted) ? wanted : "overview";
}
let last = "";
let focused = null; // what had the keyboard when the page was drawn anew: its label, or the list
function focusOf(element) {
  if (element?.getAttribute("role") === "listbox") return ".list";
  return element?.closest?.("label")?.firstChild.textContent ?? null;
}
function restoreFocus(main) {
  const labels = [...main.querySelectorAll("label")];
  const found = focused === ".list" ? main.querySelector(".list") : labels.find((one) => one.firstChild.textContent === focused)?.querySelector("select, input");
  found?.focus({ preventScroll: true });
  focused = null;
}
async function show() {
  const name = view();
  const tabs = offered().map((key) => h("a", { href: key === name ? location.hash || "#" : `#view=${key}`, "aria-current": key === name ? "page" : null }, VIEWS[key][0]));
  const main = h("main", { id: "main" });
  focused = focusOf(document.activeElement) ?? focused;
  const scrolled = document.querySelector(".list")?.scrollTop ?? 0;
  const old = document.querySelector("main");
  shownList = null;
  const header = h("header", {}, h("h1", {}, data.title), h("nav", { "aria-label": "views" }, tabs));
  if (old) {
    document.querySelector("header").replaceWith(header);
    old.replaceWith(main);
  } else document.body.append(header, main);
  await VIEWS[name][1](main);
  if (!main.isConnected) return; // the page was drawn anew meanwhile
  const box = main.querySelector(".list");
  if (box && last === name) {
    box.scrollTop = scrolled;
    shownList.reveal();
  }
  restoreFocus(main);
  if (last !== name) window.scrollTo(0, 0);
  last = name;
}
function keys(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape") {
    event.preventDefault(); // which would empty the search
    if (typing) event.target.blur();
    document.querySelector(".list")?.focus();
    if (matchMedia("(max-width: 760px)").matches) go({ q: null, doc: null });
  } else if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const by = { j: 1, k: -1 }[event.key];
    if (by && shownList) shownList.move(by);
    else if (event.key === "/") {
      document.getElementById("search")?.focus();
      event.preventDefault();
    }
  }
}
async function begin() {
  if (!("DecompressionStream" in window)) {
    document.body.append(h("p", { class: "note" }, "This browser cannot unpack the page's data. Chrome and Edge can since 80, Firefox since 113, Safari since 16.4."));
    return;
  }
  data = await part("main");
  window.addEventListener("hashchange", show);
  document.addEventListener("keydown", keys);
  await show();
  document.body.dataset.ready = String(Math.round(performance.now()));
}
begin();
