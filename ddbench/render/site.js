"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const byKey = new Map(data.rankings.map(ranking => [ranking.key, ranking]));
for (const ranking of data.rankings) for (const line of ranking.lines) line.ranking = ranking;
const every = data.rankings.flatMap(ranking => ranking.lines);
const byRun = new Map(every.map(line => [line.run_id, line]));
const methodNames = [...new Set(every.map(line => line.method))].sort();

// ---------------------------------------------------------------- text
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  node.append(...children.flat().filter(child => child !== null && child !== undefined));
  return node;
}
const fill = (place, ...children) => place.replaceChildren(...children.flat(2).filter(child => child !== null && child !== undefined));
const words = name => name.replaceAll("_", " ");
const short = dataset => dataset.replace(/@[0-9a-f]+$/, "").replace(/^[a-z]+:.*\//, "").replace(/^folder:|^hf:|^csv:|^npz:/, "");
const figure = (of, value) => value === null || value === undefined ? "" : of.percent ? (100 * value).toFixed(1) : String(Number(Number(value).toPrecision(4)));
const number = (of, value) => figure(of, value) + (of.percent && value !== null && value !== undefined ? " %" : "");
const signed = (of, value) => value === null ? "" : (value >= 0 ? "+" : "−") + figure(of, Math.abs(value));
const half = (of, line) => line.low === null ? "" : figure(of, (line.high - line.low) / 2);
const interval = (of, line) => line.low === null ? "one network supports none" : figure(of, line.low) + " to " + number(of, line.high);
const seconds = s => s < 60 ? s.toFixed(1) + " s" : s < 3600 ? Math.floor(s / 60) + " min " + Math.round(s % 60) + " s" : Math.floor(s / 3600) + " h " + Math.round(s % 3600 / 60) + " min";
const size = bytes => bytes < 1e6 ? (bytes / 1e3).toFixed(1) + " kB" : (bytes / 1e6).toFixed(2) + " MB";
const spent = line => line.seconds_distill + line.seconds_saved;
const networks = line => line.seeds.length > 1 ? line.seeds.length + " seeds × " + line.n : String(line.n);
const count = (n, noun) => n + " " + noun + (n === 1 ? "" : "s");
function facts(line) {
  const r = line.ranking;
  return [line.name, words(r.metric) + " " + number(r, line.mean) + (line.missed ? " †" : ""), "95 % interval " + interval(r, line),
    line.gain === null ? null : signed(r, line.gain) + (r.percent ? " points" : "") + " over random real images",
    "rank " + line.rank + " of " + r.lines.length, networks(line) + (line.seeds.length > 1 ? " networks" : line.n === 1 ? " network" : " networks"),
    seconds(spent(line)) + ", " + size(line.bytes), line.lines > 1 ? "one of " + line.lines + " lines of this method here" : null].filter(Boolean);
}

// ---------------------------------------------------------------- state, in the address
// Keys: protocol network labels data objective (filters), show order (matrix), ranking sort (ranking), class (pictures), method, run, at.
const FILTERS = [
  ["protocol", "Protocol", r => r.protocol],
  ["network", "Network", r => r.network || "none"],
  ["labels", "Labels", r => r.labels],
  ["data", "Data", r => r.data],
  ["objective", "Objective", r => r.objective],
];
const NAMES = {full: "full dataset", part: "part of the dataset"};
const SHOWN = {score: "score ± half its interval", gain: "gain over random real", rank: "rank"};
const ANY = "all";
let state = {};
const read = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
const address = changes => "#" + new URLSearchParams(Object.entries({...state, run: "", at: "", ...changes}).filter(([, value]) => value)).toString();
const go = changes => { location.hash = address(changes); };

// The filters with a value each: what an address from elsewhere asks for and no row has, filters nothing.
function chosen() {
  const values = {};
  values.protocol = data.rankings.some(r => r.protocol === state.protocol) ? state.protocol : data.usual.protocol;
  const within = data.rankings.filter(r => r.protocol === values.protocol);
  for (const [key, , of] of FILTERS.slice(1)) {
    const known = within.some(r => of(r) === state[key]);
    values[key] = known || state[key] === ANY ? state[key] : key === "network" ? data.usual.networks[values.protocol] || "none" : ANY;
  }
  return values;
}
const matches = (r, values, keys = FILTERS) => keys.every(([key, , of]) => values[key] === ANY || of(r) === values[key]);
const rankingsShown = values => data.rankings.filter(r => matches(r, values));
function rankingChosen(shown) {
  const asked = byKey.get(state.ranking);
  return asked && shown.includes(asked) ? asked : [...shown].sort((a, b) => b.lines.length - a.lines.length || a.budget - b.budget)[0];
}

function select(title, name, options, value, change) {
  const node = el("select", {name});
  for (const [key, text] of options) node.append(el("option", {value: key}, text));
  node.value = value;
  node.addEventListener("change", () => change(node.value));
  return el("label", {}, title, node);
}
function drawFilters(values) {
  const form = document.getElementById("filters"), focused = document.activeElement?.name;
  const within = data.rankings.filter(r => r.protocol === values.protocol);
  const controls = FILTERS.map(([key, title, of]) => {
    const from = key === "protocol" ? data.rankings : within;
    const options = [...new Set(from.map(of))].sort((a, b) => a.localeCompare(b, undefined, {numeric: true}));
    const lines = value => from.filter(r => value === ANY || of(r) === value).reduce((sum, r) => sum + r.lines.length, 0);
    const all = key === "protocol" ? [] : [ANY];
    return select(title, key, [...all, ...options].map(value => [value, (NAMES[value] ?? value) + " (" + lines(value) + ")"]), values[key],
      value => go({[key]: value, ranking: "", ...(key === "protocol" ? {network: "", labels: "", data: "", objective: ""} : {})}));
  });
  controls.push(select("Cells show", "show", Object.entries(SHOWN), SHOWN[state.show] ? state.show : "score", value => go({show: value === "score" ? "" : value})));
  form.replaceChildren(...controls);
  if (focused) form.elements[focused]?.focus();
}

// ---------------------------------------------------------------- matrix
const cell = (ranking, method) => ranking.lines.find(line => line.method === method && line.stands);
function meanGain(method, rankings) {
  const gains = rankings.filter(r => r.percent).map(r => cell(r, method)?.gain ?? null).filter(gain => gain !== null);
  return {mean: gains.length ? gains.reduce((a, b) => a + b, 0) / gains.length : null, n: gains.length};
}
function colour(gain, most) {
  if (gain === null || !most) return null;
  const share = Math.round(62 * Math.sqrt(Math.min(1, Math.abs(gain) / most)));
  return `background: color-mix(in srgb, var(--${gain >= 0 ? "better" : "worse"}) ${share}%, var(--panel))`;
}
function runs(list, of) {
  const spans = [];
  for (const item of list) spans.length && spans.at(-1)[0] === of(item) ? spans.at(-1)[1]++ : spans.push([of(item), 1, item]);
  return spans;
}
function drawMatrix(values, shown, ranking) {
  const place = document.getElementById("matrix");
  fill(place, el("h2", {id: "matrix-title"}, "Every method in every ranking: " + values.protocol + (values.network !== ANY && values.network !== "none" ? ", " + values.network : "")));
  if (!shown.length) { place.append(el("p", {class: "note", role: "status"}, "No ranking has all of these properties. Choose “all” in a filter.")); return; }
  const show = SHOWN[state.show] ? state.show : "score";
  const names = [...new Set(shown.flatMap(r => r.lines.map(line => line.method)))];
  const means = new Map(names.map(name => [name, meanGain(name, shown)]));
  const [by, direction] = (state.order ?? "gain.-1").split(".");
  const value = {gain: name => means.get(name).mean ?? -Infinity, method: name => name}[by] ?? (name => {
    const line = byKey.has(by) ? cell(byKey.get(by), name) : null;
    return line ? line.mean * (line.ranking.higher ? 1 : -1) : -Infinity;
  });
  const sign = Number(direction) || -1;
  names.sort((a, b) => { const x = value(a), y = value(b); return sign * (x < y ? -1 : x > y ? 1 : 0) || a.localeCompare(b); });
  const most = unit => Math.max(0, ...shown.filter(r => r.percent === unit).flatMap(r => r.lines.filter(l => l.stands && l.gain !== null).map(l => Math.abs(l.gain))));
  const scale = new Map([[true, most(true)], [false, most(false)]]);
  const common = shown[0].parts.filter(part => shown.every(r => r.parts.includes(part)));
  const alike = r => shown.filter(o => o.dataset === r.dataset && o.budget === r.budget);
  const sub = r => r.parts.filter(part => !common.includes(part) && (alike(r).some(o => !o.parts.includes(part)) || r.network && part.startsWith(r.network))).join(", ").replaceAll("(", " (");
  const sorter = (key, title) => { const button = el("button", {type: "button", "data-sort": key}, title); button.addEventListener("click", () => go({order: key + "." + (by === key ? -sign : key === "method" ? 1 : -1)})); return button; };
  const sorted = key => by === key ? (sign > 0 ? "ascending" : "descending") : "none";
  const twice = shown.some(r => sub(r));
  const firsts = new Set(runs(shown, r => r.dataset).map(([, , r]) => r));
  const head = el("thead", {},
    el("tr", {}, el("th", {class: "text", scope: "col", rowspan: twice ? 3 : 2, "aria-sort": sorted("method")}, sorter("method", "Method")),
      el("th", {class: "mean", scope: "col", rowspan: twice ? 3 : 2, "aria-sort": sorted("gain")}, sorter("gain", "Mean gain")),
      runs(shown, r => r.dataset).map(([dataset, span, r]) => el("th", {scope: "colgroup", colspan: span, class: "first", title: dataset + (r.data === "part" ? ", a part of the dataset" : "")}, el("span", {}, short(dataset) + (r.data === "part" ? " *" : ""))))),
    el("tr", {}, shown.map(r => el("th", {scope: "col", "aria-sort": sorted(r.key), class: firsts.has(r) ? "first" : "", "aria-current": r === ranking && "true"}, sorter(r.key, String(r.budget))))),
    twice ? el("tr", {}, shown.map(r => el("th", {scope: "col", class: "sub" + (firsts.has(r) ? " first" : "")}, sub(r)))) : null);
  const body = el("tbody", {}, names.map(name => el("tr", {"data-method": name},
    el("th", {class: "text", scope: "row"}, el("a", {href: address({method: name, at: "method"})}, name)),
    el("td", {class: "mean"}, means.get(name).mean === null ? "" : [signed({percent: true}, means.get(name).mean), el("small", {}, " in " + means.get(name).n)]),
    shown.map(r => {
      const line = cell(r, name), edge = firsts.has(r) ? "first" : "";
      if (!line) return el("td", {class: edge});
      const text = {score: [figure(r, line.mean), line.low === null ? null : el("small", {}, " ±" + half(r, line))], gain: [signed(r, line.gain)], rank: [String(line.rank), el("small", {}, " of " + r.lines.length)]}[show];
      const link = el("a", {href: address({ranking: r.key, method: name, at: "ranking"}), "data-tip": facts(line).join("\n"), "aria-label": facts(line).join(", ")}, text, line.missed ? "†" : null);
      return el("td", {class: edge, style: colour(line.gain, scale.get(r.percent))}, link);
    }))));
  const words_ = count(names.length, "method") + ", " + count(shown.length, "ranking") + ", " + count(shown.reduce((sum, r) => sum + r.lines.length, 0), "line");
  const ends = scale.get(true) ? [-1, 1].map(sign => signed({percent: true}, sign * scale.get(true))) : ["worse", "better"];
  place.append(
    el("p", {class: "note", role: "status", id: "status"}, words_ + "."),
    el("div", {class: "legend"}, el("span", {}, "Gain over as many random real images" + (scale.get(true) ? ", in points:" : ":")), el("span", {class: "ends"}, ends[0], el("span", {class: "ramp", "aria-hidden": "true"}), ends[1])),
    el("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": "Matrix of methods and rankings"},
      el("table", {class: "matrix"}, el("caption", {class: "hidden"}, "Methods by dataset and images per class; each cell links to its ranking"), head, body)),
    el("p", {class: "note"}, "Columns: dataset, images per class" + (twice ? ", and what else is different" : "") + "; a click on one sorts. A cell opens its ranking, a name its method. Mean gain is over the rankings that a method is in." + (shown.some(r => r.data === "part") ? " * a part of the dataset." : "") + (shown.some(r => r.lines.some(l => l.missed)) ? " † misses a threshold." : "")
      + (shown.some(r => r.lines.some(l => l.lines > 1)) ? " Of several lines of a method, the one with most seeds, then networks, then the newest stands here; never the best." : "")));
}

// ---------------------------------------------------------------- charts
const drawn = [];
const colourOf = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
function config() {
  const [ink, soft, line] = ["ink", "soft", "line"].map(colourOf);
  const axis = {labelColor: ink, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12, titleFontWeight: "normal", titleFontSize: 12};
  return {background: "transparent", font: "system-ui, sans-serif", view: {stroke: null}, axis, style: {
    method: {color: colourOf("accent")}, interval: {color: colourOf("accent-soft")}, label: {color: ink},
    baseline: {color: colourOf("baseline"), strokeWidth: 2}, bound: {color: colourOf("bound"), strokeWidth: 2},
    front: {color: colourOf("accent"), strokeWidth: 1.5}, curve: {color: colourOf("accent")}}};
}
// Where names of points fit: the first free place of four around each; a name that fits nowhere is in the tooltip.
function placeLabels(view, rows) {
  const x = view.scale("x"), y = view.scale("y"), width = view.width(), height = view.height();
  const at = rows.map(row => [x(row.cost), y(row.score)]), taken = at.map(([a, b]) => [a - 5, b - 5, a + 5, b + 5]);
  const order = rows.map((_, i) => i).sort((i, j) => rows[j].front - rows[i].front || rows[j].score - rows[i].score);
  for (const i of order) {
    const wide = 6.4 * rows[i].name.length, [a, b] = at[i];
    const boxes = {right: [a + 8, b - 7, a + 9 + wide, b + 7], left: [a - 9 - wide, b - 7, a - 8, b + 7], top: [a - wide / 2, b - 19, a + wide / 2, b - 6], bottom: [a - wide / 2, b + 6, a + wide / 2, b + 20]};
    // The line of the front leaves a point to the right.
    for (const name of rows[i].front ? ["top", "left", "bottom", "right"] : ["right", "left", "top", "bottom"]) {
      const box = boxes[name];
      if (box[0] < 0 || box[1] < 0 || box[2] > width || box[3] > height) continue;
      if (taken.some((other, j) => j !== i && box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1])) continue;
      rows[i].place = name; taken.push(box); break;
    }
  }
  return rows;
}
async function paint(item) {
  let text = JSON.stringify(data.charts[item.name]);
  for (const [word, replacement] of Object.entries(item.words)) text = text.replaceAll("{" + word + "}", JSON.stringify(replacement).slice(1, -1));
  const spec = {...JSON.parse(text), datasets: structuredClone(item.datasets)};
  item.view?.finalize();
  const {view} = await vegaEmbed(item.place, spec, {actions: false, renderer: "svg", config: config(), tooltip: {theme: "custom"}, logLevel: 1});
  item.view = view;
  if (item.name === "cost" && item.datasets.rows.length) await view.data("rows", placeLabels(view, structuredClone(item.datasets.rows))).runAsync();
}
function chart(name, caption, datasets, replacements = {}) {
  const place = el("div", {class: "vega", role: "img", "aria-label": typeof caption === "string" ? caption : caption.map(c => typeof c === "string" ? c : c.textContent).join("")});
  const item = {name, place, datasets, words: replacements};
  drawn.push(item);
  // An element has a width once it is in the page.
  requestAnimationFrame(() => place.isConnected && paint(item));
  return el("figure", {}, place, el("figcaption", {}, caption));
}
function repaint() {
  for (let i = drawn.length - 1; i >= 0; i--) if (!drawn[i].place.isConnected) { drawn[i].view?.finalize(); drawn.splice(i, 1); }
  drawn.forEach(paint);
}
const scaled = (r, value) => value === null ? null : r.percent ? 100 * value : value;
const unit = r => words(r.metric) + (r.percent ? " (%)" : "");
function point(line) {
  const r = line.ranking;
  return {label: line.name, name: line.method, metric: number(r, line.mean), interval: interval(r, line), gain: signed(r, line.gain), rank: line.rank + " of " + r.lines.length,
    "images per class": r.budget, seconds: seconds(spent(line)), bytes: size(line.bytes), score: scaled(r, line.mean), low: scaled(r, line.low ?? line.mean), high: scaled(r, line.high ?? line.mean)};
}
function rankingChart(r) {
  const references = new Map();
  for (const line of r.lines) for (const [name, c] of Object.entries(line.companions)) if (c.kind !== "other") references.set(name + c.mean, {label: words(name), kind: c.kind, score: scaled(r, c.mean), metric: number(r, c.mean)});
  const kinds = [...new Set([...references.values()].map(c => c.kind))], named = kind => [...new Set([...references.values()].filter(c => c.kind === kind).map(c => c.label))].join(", ");
  const caption = [el("span", {class: "mark-method"}, "● "), words(r.metric) + " with its 95 % interval",
    ...kinds.flatMap(kind => [el("span", {class: "mark-" + kind}, kind === "bound" ? "  │ " : "  ┆ "), named(kind)]), "."];
  const order = [...r.lines].sort((a, b) => a.missed - b.missed || (r.higher ? b.mean - a.mean : a.mean - b.mean));
  return chart("ranking", caption, {rows: order.map(point), references: [...references.values()]}, {metric: unit(r)});
}
// A point is on the front where no point of at most its cost has a better score.
function front(rows, higher) {
  for (const row of rows) row.front = !rows.some(o => o !== row && o.cost <= row.cost && (higher ? o.score >= row.score : o.score <= row.score) && (o.cost < row.cost || o.score !== row.score));
  return rows;
}
function costCharts(r) {
  const alike = data.rankings.filter(o => ["dataset", "protocol", "network", "objective", "metric"].every(key => o[key] === r[key]) && o.parts.some(part => r.parts.includes(part) && part.startsWith(r.network || part)));
  const lines = alike.flatMap(o => o.lines), many = new Set(lines.map(l => l.ranking.budget)).size > 1;
  const LEAST = 0.01; // A logarithmic axis has no zero.
  const timed = front(r.lines.map(line => ({...point(line), cost: Math.max(LEAST, spent(line))})), r.higher);
  const sized = front(lines.map(line => ({...point(line), name: line.method + (many ? " " + line.ranking.budget : ""), cost: line.bytes})), r.higher);
  return el("div", {class: "columns"},
    chart("cost", "Score and seconds of distillation, with the seconds that cached parts took. The line is the Pareto front.", {rows: timed}, {metric: unit(r), cost: "seconds, logarithmic", format: "~g"}),
    chart("cost", "Score and bytes of the set" + (many ? ", for every number of images per class and kind of labels" : "") + ". The line is the Pareto front.", {rows: sized}, {metric: unit(r), cost: "bytes, logarithmic", format: "~s"}));
}
const waiting = new Map();
window.curveLoaded = (key, points) => { data.curves[key] = points; (waiting.get(key) ?? []).forEach(draw => draw()); waiting.delete(key); };
function whenCurve(key, draw) {
  if (data.curves[key]) { draw(); return; }
  if (waiting.has(key)) { waiting.get(key).push(draw); return; }
  waiting.set(key, [draw]);
  document.head.append(el("script", {src: "curves/" + key + ".js"}));
}
function curves(line) {
  const place = el("div", {class: "curve"});
  whenCurve(line.curve, () => {
    const points = data.curves[line.curve];
    for (const name of Object.keys(points[0] ?? {}).filter(key => !["loop", "step", "seconds", "gradient_norm"].includes(key))) {
      const rows = points.filter(p => Number.isFinite(p[name])).map(p => ({step: p.step, seconds: p.seconds, value: p[name]})), figures = rows.map(row => row.value);
      if (!rows.length) continue;
      const decades = Math.min(...figures) > 0 && Math.max(...figures) > 30 * Math.min(...figures);
      place.append(chart(decades ? "curve_log" : "curve", words(name) + " of " + line.run_id + (decades ? ", logarithmic" : ""), {rows}, {figure: words(name)}));
    }
  });
  return place;
}

// ---------------------------------------------------------------- tables
// A column: key, title, value to sort by, text, classes, "up" where it sorts upwards at first.
function sortable(rows, columns, caption, name, fallback, row) {
  const [by, direction] = (state[name] ?? fallback).split("."), sign = Number(direction) || 1;
  const column = columns.find(c => c.key === by) ?? columns.find(c => c.key === fallback.split(".")[0]);
  const ordered = [...rows].sort((a, b) => { const x = column.value(a), y = column.value(b); return sign * (x < y ? -1 : x > y ? 1 : 0); });
  const head = columns.map(c => {
    if (!c.value) return el("th", {scope: "col", class: c.kind}, c.title);
    const button = el("button", {type: "button", "data-sort": c.key}, c.title);
    button.addEventListener("click", () => go({[name]: c.key + "." + (column === c ? -sign : c.up ? 1 : -1)}));
    return el("th", {scope: "col", class: c.kind, "data-key": c.key, "aria-sort": column === c ? (sign > 0 ? "ascending" : "descending") : "none"}, button);
  });
  return el("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": caption},
    el("table", {class: "wide"}, el("caption", {class: "hidden"}, caption), el("thead", {}, el("tr", {}, head)),
      el("tbody", {}, ordered.map(item => el("tr", row(item), columns.map(c => el("td", {class: c.kind}, c.text(item))))))));
}
const COST = [
  {key: "seconds", title: "Time", value: spent, text: l => seconds(l.seconds_distill) + (l.seconds_saved ? " (+ " + seconds(l.seconds_saved) + " cached)" : ""), kind: "less"},
  {key: "bytes", title: "Bytes", value: l => l.bytes, text: l => size(l.bytes), kind: "less"},
  {key: "memory", title: "Peak memory", value: l => l.peak_memory_mb, text: l => l.peak_memory_mb.toFixed(0) + " MB", kind: "less"},
];
const SCORE = [
  {key: "score", title: "Score", value: l => l.mean, text: l => number(l.ranking, l.mean) + (l.missed ? " †" : "")},
  {key: "interval", title: "95 % interval", text: l => l.low === null ? "–" : figure(l.ranking, l.low) + "–" + figure(l.ranking, l.high), kind: "less"},
  {key: "gain", title: "Gain", value: l => l.gain ?? -Infinity, text: l => signed(l.ranking, l.gain) + (Object.values(l.companions).some(c => c.kind === "baseline" && c.missed) ? " †" : "")},
  {key: "n", title: "Networks", value: l => l.seeds.length * l.n, text: networks, kind: "less"},
];
const RUN = {key: "run", title: "Run", value: l => l.run_id, text: l => el("a", {href: address({run: l.run_id}), "aria-label": "Details of " + l.run_id}, "details"), kind: "text", up: true};
function rankingTable(r) {
  const beside = r.beside.map(name => ({key: "beside " + name, title: words(name), value: l => l.metrics.find(m => m.name === name)?.mean ?? 0, text: l => { const m = l.metrics.find(m => m.name === name); return m ? number(m, m.mean) : ""; }}));
  const columns = [
    {key: "rank", title: "#", value: l => l.rank, text: l => String(l.rank), up: true},
    {key: "method", title: "Method", value: l => l.method, text: l => el("a", {href: address({method: l.method, at: "method"})}, l.name.length > 60 ? l.name.slice(0, 59) + "…" : l.name), kind: "text", up: true},
    ...SCORE.slice(0, 3), ...beside, ...SCORE.slice(3), ...COST.slice(0, 2), RUN];
  return sortable(r.lines, columns, r.heading, "sort", "rank.1", l => ({"data-run": l.run_id, "aria-current": l.method === state.method && "true"}));
}
const place_ = r => short(r.dataset) + (r.data === "part" ? " *" : "") + ", " + r.budget;
function drawRanking(shown, ranking) {
  const place = document.getElementById("ranking");
  if (!ranking) { place.replaceChildren(); return; }
  const choice = select("Ranking", "ranking", shown.map(r => [r.key, r.heading + " (" + r.lines.length + ")"]), ranking.key, key => go({ranking: key}));
  fill(place, el("h2", {id: "ranking-title"}, ranking.heading), el("div", {class: "choice"}, choice),
    el("p", {class: "note"}, count(ranking.lines.length, "line") + " that compare: data, network, init of scoring, budget, protocol, objective and labels are the same. A rank is one more than the lines whose 95 % interval lies wholly above. The gain is over as many random real images" + (ranking.percent ? ", in points." : ".")),
    el("div", {class: "columns uneven"}, rankingChart(ranking), rankingTable(ranking)),
    ranking.notes.map(note => el("p", {class: "note"}, note)),
    ranking.lines.length > 1 ? [el("h3", {}, "Score and cost"), costCharts(ranking)] : []);
}

// ---------------------------------------------------------------- pictures
function tile(picture, row, column, side, name) {
  const [height, width] = picture.size, rows = picture.labels.length, columns = Math.max(...picture.labels.map(labels => labels.length)), f = side / width;
  const style = `width:${side}px;height:${height * f}px;background-image:url("${picture.address}");background-size:${(columns * (width + 1) - 1) * f}px ${(rows * (height + 1) - 1) * f}px;background-position:${-column * (width + 1) * f}px ${-row * (height + 1) * f}px`;
  return el("span", {class: "tile", role: "img", "aria-label": name, title: name, style});
}
function found(picture, label, most) {
  const places = [];
  picture.labels.forEach((labels, row) => labels.forEach((each, column) => { if (each === label && places.length < most) places.push([row, column]); }));
  return places;
}
const MOST_CLASSES = 20;
function drawPictures(ranking) {
  const place = document.getElementById("pictures");
  const lines = ranking ? ranking.lines.filter(line => line.stands && line.picture) : [];
  if (!lines.length) { fill(place, ranking ? [el("h2", {id: "pictures-title"}, "Pictures"), el("p", {class: "note"}, "The distilled sets of this ranking are not kept beside the leaderboard.")] : []); return; }
  const classes = lines.map(l => l.picture.classes).sort((a, b) => b.length - a.length)[0];
  const labels = [...new Set(lines.flatMap(l => l.picture.labels.flat()))].sort((a, b) => a - b), name = label => classes[label] ?? String(label);
  const asked = labels.find(label => String(label) === state.class), columns = asked === undefined ? labels.slice(0, MOST_CLASSES) : null;
  const narrow = window.innerWidth < 768, room = place.clientWidth - (narrow ? 24 : 260), most = columns ? columns.length : 10;
  const side = Math.max(14, Math.min(48, Math.floor(room / most) - 2));
  const grid = el("div", {class: "gallery", role: "table", "aria-label": "Pictures by method"});
  if (columns) grid.append(el("span", {class: "corner"}), el("div", {class: "heads", "aria-hidden": "true"}, columns.map(label => el("span", {style: `width:${side}px`, title: name(label)}, name(label)))));
  for (const line of lines) {
    const places = columns ? columns.map(label => [label, found(line.picture, label, 1)[0]]) : found(line.picture, asked, 10).map(at => [asked, at]);
    const tiles = places.map(([label, at]) => at ? tile(line.picture, ...at, side, name(label) + " by " + line.method) : el("span", {class: "tile", style: `width:${side}px;height:${side * line.picture.size[0] / line.picture.size[1]}px`, title: "no " + name(label) + " on this picture"}));
    grid.append(el("span", {class: "name"}, el("a", {href: address({run: line.run_id})}, line.method), " ", el("small", {}, number(ranking, line.mean))), el("div", {class: "tiles"}, tiles));
  }
  const choice = select("Class", "class", [["", "one image of every class"], ...labels.map(label => [String(label), name(label)])], asked === undefined ? "" : String(asked), value => go({class: value}));
  fill(place, el("h2", {id: "pictures-title"}, "The same class by every method"), el("div", {class: "choice"}, choice),
    el("p", {class: "note"}, place_(ranking) + " images per class. " + (columns ? "The first image of every class" + (labels.length > MOST_CLASSES ? `, of the first ${MOST_CLASSES} classes` : "") : "Up to ten images of the class") + ", best score first. Own pixels of the sets; values outside black and white are clipped."), grid);
}

// ---------------------------------------------------------------- published, methods, a run
function drawPublished(ranking) {
  const place = document.getElementById("published"), dataset = ranking ? ranking.dataset.split("@")[0] : "";
  const rows = data.published.filter(p => p.dataset === dataset && p.images_per_class === ranking?.budget);
  place.replaceChildren();
  if (!rows.length) return;
  const shown = p => number({percent: p.unit === "share"}, p.mean) + (p.std === null ? "" : " ± " + figure({percent: p.unit === "share"}, p.std));
  const columns = [["Method", p => p.method], ["Figure", p => words(p.metric) + " " + shown(p)], ["Network", p => p.network], ["Setting", p => p.setting], ["Source", p => p.source]];
  place.append(el("h2", {}, "Published elsewhere: " + dataset + ", " + ranking.budget + " images per class"), el("p", {class: "note"}, "Figures as their sources report them, under other protocols. Not measured here and not ranked."),
    el("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": "Published figures"}, el("table", {class: "wide"}, el("caption", {class: "hidden"}, "Published figures"),
      el("thead", {}, el("tr", {}, columns.map(([title]) => el("th", {scope: "col", class: "text"}, title)))),
      el("tbody", {}, rows.map(p => el("tr", {}, columns.map(([, text]) => el("td", {class: "text"}, text(p)))))))));
}
function drawMethod(ranking) {
  const place = document.getElementById("method");
  if (!methodNames.length) return;
  const name = methodNames.includes(state.method) ? state.method : ranking?.lines[0].method ?? methodNames[0];
  const card = data.methods[name], lines = every.filter(line => line.method === name);
  const order = (a, b) => a.ranking.dataset.localeCompare(b.ranking.dataset) || a.ranking.budget - b.ranking.budget;
  const columns = [
    {key: "task", title: "Dataset, images per class", value: l => l.ranking.dataset + String(l.ranking.budget).padStart(6, "0"), text: l => el("a", {href: address({protocol: l.ranking.protocol, network: l.ranking.network || "none", labels: "", data: "", objective: "", ranking: l.ranking.key, at: "ranking"}), title: l.ranking.heading}, place_(l.ranking)), kind: "text", up: true},
    {key: "network", title: "Network", value: l => l.ranking.network, text: l => l.ranking.network || "none", kind: "text less", up: true},
    {key: "protocol", title: "Protocol", value: l => l.ranking.protocol, text: l => l.ranking.protocol, kind: "text less", up: true},
    ...SCORE, {key: "rank", title: "Rank", value: l => l.rank / l.ranking.lines.length, text: l => l.rank + " of " + l.ranking.lines.length, up: true}, ...COST, RUN];
  const pictured = lines.filter(line => line.picture).sort(order), curved = lines.filter(line => line.curve).sort(order);
  const options = el("dl");
  for (const option of card?.options ?? []) options.append(el("dt", {}, option.name + " = " + option.default), el("dd", {}, option.meaning));
  fill(place, el("h2", {id: "method-title"}, "Method: " + name),
    el("div", {class: "choice"}, select("Method", "method", methodNames.map(each => [each, each]), name, value => go({method: value}))),
    el("div", {class: "columns"},
      card ? el("div", {}, el("pre", {class: "card"}, card.help), el("p", {class: "note"}, card.source)) : el("p", {class: "note"}, "This method is not installed where the page was made, so its card is missing."),
      card ? el("div", {}, options, copyable("ddbench show " + name)) : null),
    el("h3", {}, "All scores and their cost"),
    sortable(lines, columns, "All scores of " + name, "scores", "task.1", l => ({"data-score": l.run_id})),
    pictured.length ? [el("h3", {}, "Pictures"), el("div", {class: "sheets"}, pictured.map(line => sheet(line)))] : [],
    curved.length ? [el("h3", {}, "Curves"), el("div", {class: "columns curves"}, curved.slice(0, MOST_CURVES).map(curves)), curved.length > MOST_CURVES ? el("p", {class: "note"}, `The first ${MOST_CURVES} of ${curved.length} runs with a curve; the details of a run show its own.`) : null] : []);
}
const MOST_CURVES = 4;
const sheet = line => el("figure", {}, el("img", {src: line.picture.address, loading: "lazy", alt: `The distilled images of ${line.run_id}, a column for each class, ten rows at most`}),
  el("figcaption", {}, el("a", {href: address({run: line.run_id})}, place_(line.ranking)), ", " + line.ranking.network + ", " + line.ranking.protocol + ": " + number(line.ranking, line.mean)));
function copyable(text) {
  const button = el("button", {type: "button"}, "Copy");
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(text); } catch {
      const area = el("textarea", {class: "hidden"}, text); button.after(area); area.select(); document.execCommand("copy"); area.remove();
    }
    button.textContent = "Copied"; setTimeout(() => button.textContent = "Copy", 1500);
  });
  return el("div", {}, el("pre", {class: "command"}, text), button);
}
function drawRun() {
  const dialog = document.getElementById("run"), line = byRun.get(state.run);
  if (!line) { dialog.close(); return; }
  const r = line.ranking, remarks = c => c.remarks.length ? " (" + c.remarks.join("; ") + ")" : "", list = el("dl");
  const of = {
    "Score": facts(line).slice(1).join("; "), "Ranking": r.heading, "Options": Object.entries(line.options).map(([k, v]) => k + " " + JSON.stringify(v)).join(", "), "Experiment": line.experiment,
    "Before training": number(r, line.before), "Selected on": line.selected_on, "Distilled for": line.network + " from " + line.init,
    "Outer steps": line.outer_steps + (line.stopped_by ? ", stopped by the " + line.stopped_by : ""), "Scoring": seconds(line.seconds_evaluate), "Peak memory": line.peak_memory_mb.toFixed(0) + " MB",
    "Seed": line.seeds.length > 1 ? line.seeds.map(s => s.seed + ": " + number(r, s.mean)).join(", ") : line.seed,
    "Other figures": line.metrics.map(m => words(m.name) + " " + number(m, m.mean)).join(", "),
    "Companions": Object.entries(line.companions).map(([k, c]) => words(k) + " " + number(r, c.mean) + remarks(c)).join(", "),
    "Fairness": Object.entries(line.fairness).map(([k, v]) => k + " " + v.toFixed(3)).join(", "),
    "Pools": Object.entries(line.pretrained).map(([k, v]) => k + " " + JSON.stringify(v)).join(", "),
    "Machine": Object.entries(line.environment).map(([k, v]) => k + " " + v).join(", "), "From": line.method_source, "Written": line.created, "Fingerprint": line.fingerprint,
  };
  for (const [key, value] of Object.entries(of)) if (value !== "" && value !== undefined) list.append(el("dt", {}, key), el("dd", {}, String(value)));
  const close = el("button", {type: "button", class: "close"}, "Close");
  close.addEventListener("click", () => dialog.close());
  fill(dialog, close, el("h2", {id: "run-title"}, line.run_id),
    el("div", {class: "columns"}, el("div", {}, list, line.command ? [el("h3", {}, "Run it again"), copyable(line.command)] : []),
      el("div", {class: "shown"}, line.picture ? sheet(line) : el("p", {class: "note"}, "The distilled set is not kept beside the leaderboard."), line.curve ? curves(line) : [])));
  if (!dialog.open) dialog.showModal();
}
document.getElementById("run").addEventListener("close", () => { if (state.run) go({run: ""}); });

// ---------------------------------------------------------------- tooltip of cells, on hover and focus
const tip = document.getElementById("tip");
function showTip(event) {
  const cell = event.target.closest?.("[data-tip]");
  tip.hidden = !cell;
  if (!cell) return;
  tip.textContent = cell.dataset.tip;
  const box = cell.getBoundingClientRect(), width = tip.offsetWidth;
  tip.style.left = Math.max(4, Math.min(window.scrollX + box.left, window.scrollX + document.documentElement.clientWidth - width - 8)) + "px";
  const below = box.bottom + tip.offsetHeight + 8 < window.innerHeight;
  tip.style.top = window.scrollY + (below ? box.bottom + 4 : box.top - tip.offsetHeight - 4) + "px";
}
for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, showTip);
document.addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });

// ---------------------------------------------------------------- drawing what the address says
const before = {};
function once(name, inputs, draw) {
  const text = JSON.stringify(inputs);
  if (before[name] === text) return;
  before[name] = text;
  const sort = document.activeElement?.closest?.("#" + name) ? document.activeElement.dataset?.sort ?? document.activeElement.name : null;
  draw();
  if (sort) document.querySelector(`#${name} [data-sort="${CSS.escape(sort)}"], #${name} [name="${CSS.escape(sort)}"]`)?.focus();
}
function draw(jump) {
  state = read();
  if (!data.rankings.length) {
    document.getElementById("filters").hidden = true;
    fill(document.getElementById("matrix"), el("h2", {id: "matrix-title"}, "There are no records yet"), el("p", {class: "note"}, "A run adds one: ddbench run."));
    return;
  }
  const values = chosen(), shown = rankingsShown(values), ranking = rankingChosen(shown), key = ranking?.key;
  tip.hidden = true;
  once("filters", [values, state.show], () => drawFilters(values));
  // Links hold the whole address, so what has links is drawn again with any change of it, but charts only with their data.
  once("matrix", state, () => drawMatrix(values, shown, ranking));
  once("ranking", {...state, run: "", at: "", class: "", scores: "", show: "", order: ""}, () => drawRanking(shown, ranking));
  once("pictures", [key, state.class, window.innerWidth], () => drawPictures(ranking));
  once("published", key, () => drawPublished(ranking));
  once("method", [methodNames.includes(state.method) ? state.method : key, state.scores], () => drawMethod(ranking));
  drawRun();
  const target = jump && document.querySelector(`section#${CSS.escape(state.at ?? "none")}`);
  if (!target) return;
  target.tabIndex = -1;
  target.scrollIntoView();
  target.focus({preventScroll: true});
}
// Links are made when a section is drawn; one that is followed takes the present address along.
document.addEventListener("click", event => {
  const link = event.target.closest?.('a[href^="#"]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  go(Object.fromEntries(new URLSearchParams(link.getAttribute("href").slice(1))));
});
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  repaint();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
// A phone changes the height whenever its address bar comes and goes.
let pending = 0, width = window.innerWidth;
window.addEventListener("resize", () => {
  if (width === window.innerWidth) return;
  width = window.innerWidth;
  clearTimeout(pending);
  pending = setTimeout(() => { draw(false); repaint(); }, 200);
});
window.addEventListener("hashchange", () => draw(true));
draw(true);
})();
