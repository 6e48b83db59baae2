"use strict";
(() => {
const $ = (selector) => document.querySelector(selector);
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const data = read("data");
const SVG = "http://www.w3.org/2000/svg";
const VIEW = Object.fromEntries(data.views.map((v) => [v.key, v]));
const CELL_VIEWS = data.cellViews;
const FIRST = 5; // the numbers of a pair start here: models, layers and "above chance" come before
const field = (pair, name) => (data.pairColumns.includes(name) ? pair[FIRST + data.pairColumns.indexOf(name)] : null);
const state = { measure: 0, pair: data.measures[0].best, matrixView: "statistic", layerView: "statistic", cursor: null };

// --- words: the same numbers as everywhere else -------------------------------------------------
const fixed = (value, places) => { // rounded as Python does, from the exact binary value
  const [whole, rest] = value.toFixed(places).split(".");
  return [whole.replace(/\B(?=(\d{3})+$)/g, ","), ...(rest ? [rest] : [])].join(".").replace("-", "−");
};
function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Math.abs(value) < 1e-12) return "0";
  const size = Math.floor(Math.log10(Math.abs(Number(value.toPrecision(3)))));
  if (size < -5 || size > 6) return value.toExponential(2).replace("e+", "e").replace(/-/g, "−");
  const places = Math.max(0, 2 - size);
  return fixed(value, places);
}
function pvalue(p, draws) {
  if (p === null || p === undefined || !Number.isFinite(p)) return "–";
  if (p >= 0.9995) return "1";
  if (p < 1e-10) return "< 1e−10";
  const places = p < 0.1 ? 1 - Math.floor(Math.log10(Number(p.toPrecision(2)))) : 3;
  const text = p < 1e-4 ? p.toExponential(1).replace("-", "−") : p.toFixed(places).replace(/0+$/, "").replace(/^0/, "");
  return draws && p * (draws + 1) < 1.5 ? `≤ ${text}` : text;
}
function interval(value, low, high) {
  const text = number(value);
  if ([low, high].some((end) => end === null || end === undefined) || text === "–" || text.includes("e")) return text;
  const places = (text.split(".")[1] ?? "").length;
  return `${text} [${fixed(low, places)}, ${fixed(high, places)}]`;
}
const show = (view, value, draws) => (data.pViews.includes(view) ? pvalue(value, data.floored.includes(view) ? draws : 0) : number(value));

// --- elements: names are only ever set as text --------------------------------------------------
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "rect", "circle", "text", "g", "line", "defs", "pattern"].includes(name);
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined).map((c) => (c instanceof Node ? c : String(c))));
  return node;
}
const fill = (selector, ...children) => $(selector).replaceChildren(...children);
const count = (v) => v.toLocaleString("en-US");
const step = (position) => Math.round(position * 31);

function place(view, value, [low, high]) {
  if (value === null || Number.isNaN(value) || low === null) return null;
  if (low === high) return 0;
  const share = data.pViews.includes(view) ? Math.log(Math.max(value, 1e-300) / low) / Math.log(high / low) : (value - low) / (high - low);
  return Math.min(1, Math.max(0, share));
}

// Views as buttons; those that are rarely asked for are folded into a list.
function buttons(selector, keys, chosen, choose, folded = []) {
  const focused = $(selector).contains(document.activeElement);
  const list = folded.length ? make("select", { class: folded.includes(chosen) ? "on" : null, "aria-label": "p by other rules over pairs of models", on: { change: (event) => choose(event.target.value) } },
    make("option", { value: "", disabled: true, selected: !folded.includes(chosen) }, "p by other rules"),
    ...folded.map((key) => make("option", { value: key, selected: key === chosen }, VIEW[key].label))) : null;
  fill(selector, ...keys.map((key) => make("button", { type: "button", "aria-pressed": String(key === chosen), title: VIEW[key].meaning, on: { click: () => choose(key) } }, VIEW[key].label)), ...(list ? [list] : []));
  if (focused) $(`${selector} [aria-pressed=true], ${selector} .on`)?.focus({ preventScroll: true });
}

// A colour bar: its two ends below it, marks above it, each on a line of its own.
function legend(selector, view, [low, high], marks, floor) {
  if (low === null) return fill(selector);
  const p = data.pViews.includes(view);
  const ends = p ? [`p = ${pvalue(low)} and above`, `p = ${pvalue(high)}${low > high && !floor ? " and below" : ""}`] : [view === "statistic" ? `chance ${number(low)} and below` : number(low), number(high)];
  const shown = marks.filter(([value]) => value !== null && value > low && value <= high).map(([value, words]) => [100 * place(view, value, [low, high]), words]).sort((a, b) => a[0] - b[0]);
  // The words stand beside the line of their mark, on the side where no line of another mark comes down.
  const leftwards = shown.length && shown.at(-1)[0] > 60;
  if (leftwards) shown.reverse();
  fill(selector,
    ...shown.map(([at, words], row) => make("div", { class: "ticks above" },
      make("span", { style: `left:${at}%;--drop:${1.5 * (shown.length - 1 - row)}em`, class: leftwards && at > 30 ? "last" : "first" }, words))),
    make("div", { class: view === "statistic" ? "ramp from-chance" : "ramp" }),
    make("div", { class: "ticks" }, make("span", { class: "low" }, ends[0]), make("span", { class: "high" }, ends[1])));
}

// --- models against models ----------------------------------------------------------------------
function drawMatrix() {
  const m = data.measures[state.measure], view = state.matrixView, { texts, steps, scale, chance } = m.matrix[view], grid = m.grid;
  const views = Object.keys(m.matrix), folded = views.filter((key) => data.adjusted.includes(key) && key !== m.rule);
  buttons("#matrix-view", views.filter((key) => !folded.includes(key)), view, (key) => { state.matrixView = key; drawMatrix(); }, folded);
  const head = make("tr", {}, make("td"), ...grid.columns.map((c) => make("th", { scope: "col" }, make("span", {}, c))));
  const rows = grid.rows.map((r, i) => make("tr", {}, make("th", { scope: "row" }, r), ...grid.columns.map((c, j) => {
    const k = grid.index[i][j];
    if (k < 0) return make("td", { class: "none" });
    const mark = grid.found[i][j] || texts[i][j] === "–" ? "" : "○ ";
    const over = m.groups ? `, the mean of ${count(grid.counts[0][i][j])} pairs, ${count(grid.counts[1][i][j])} above chance; click for the best` : "";
    const name = `${r} and ${c}: ${VIEW[view].label} ${texts[i][j]}${over}`;
    return make("td", {}, make("button", {
      type: "button", class: steps[i][j] < 0 ? "qx" : `q${steps[i][j]}`, title: name, "aria-label": name, "data-pair": k,
      "aria-pressed": String(k === state.pair), on: { click: () => { choosePair(k); $("#layers").scrollIntoView(); } },
    }, mark + texts[i][j]));
  })));
  const table = make("table", { class: "matrix" }, make("thead", {}, head), make("tbody", {}, ...rows));
  fill("#matrix", table);
  fitMatrix();
  fill("#matrix-meaning", `${m.label}, n = ${data.n.toLocaleString("en-US")}. ${VIEW[view].meaning}`);
  legend("#matrix-legend", view, scale, [], m.draws);
  const level = chance[0] === chance[1] ? number(chance[0]) : `${number(chance[0])} to ${number(chance[1])}`;
  const span = chance[1] - chance[0], wide = view === "statistic" && span > 0.25 * (scale[1] - chance[0]);
  const ceiling = m.ceilings.length ? ` Ceiling: ${m.ceilings.join("; ")}.` : "";
  const grouped = m.groups ? `${count(m.pairCount)} pairs are too many to show one by one: rows and columns are ${m.groups}, numbers are means over pairs. ` : "";
  fill("#matrix-note", `${grouped}${m.groups ? m.note.replace("not", "no pair") : m.note}. Chance level of the search: ${level}.${ceiling}${wide ? " Chance differs much between pairs: look at “Above chance” or “Calibrated” before comparing raw scores." : ""}`);
}

// Cells as wide as the page allows; where numbers find no room, colour alone, and the number on hover.
function fitMatrix() {
  const table = $(".matrix"), room = $("#matrix").clientWidth;
  if (!table || !room) return;
  const count = table.tHead.rows[0].cells.length - 1, longest = (texts) => Math.max(...texts.map((text) => text.length));
  const names = Math.min(room * 0.34, 8 * longest(data.measures[state.measure].grid.rows) + 20), cell = Math.max(8, Math.min(64, Math.floor((room - names - 4) / count) - 2));
  const size = Math.min(12.8, cell / (0.62 * longest([...table.querySelectorAll("td > button")].map((button) => button.textContent))));
  table.classList.toggle("bare", size < 8);
  table.classList.toggle("tight", cell < 30);
  const sizes = { "--names": names, "--cell": cell, "--high": Math.max(14, Math.min(38, cell)), "--size": size, "--whole": names + count * (cell + 2) + 4 };
  for (const [key, value] of Object.entries(sizes)) table.style.setProperty(key, `${value}px`);
}

// --- layers against layers ----------------------------------------------------------------------
const packs = [];
function cells(measure, pair) {
  packs[measure] ??= { ...read(`cells-${measure}`), maps: [] };
  const pack = packs[measure], [lx, ly] = data.measures[measure].maps[pair].shape;
  if (!pack.maps[pair]) {
    const bytes = Uint8Array.from(atob(pack.blocks[pair]), (c) => c.charCodeAt(0)), count = lx * ly, map = { lx, ly };
    const reader = new DataView(bytes.buffer);
    pack.fields.forEach((field, f) => {
      const values = new Float64Array(count);
      for (let i = 0; i < count; i++) {
        if (pack.exact) values[i] = reader.getFloat64(8 * (f * count + i), true);
        else { const raw = reader.getUint16(2 * (f * count + i), true); values[i] = raw === 65535 ? NaN : field.low + raw * field.step; if (field.log) values[i] = 10 ** values[i]; }
      }
      map[field.name] = values;
    });
    map.gain = map.statistic.map((s, i) => s - map.null_mean[i]);
    pack.maps[pair] = map;
  }
  return pack.maps[pair];
}

function choosePair(k) {
  state.pair = k;
  state.cursor = null;
  remember();
  document.querySelectorAll("[data-pair]").forEach((b) => b.setAttribute("aria-pressed", String(Number(b.dataset.pair) === k)));
  drawLayers();
}

function pairOf(x, y) {
  const pairs = data.measures[state.measure].pairs;
  const k = pairs.findIndex((p) => p[0] === x && p[1] === y);
  return k >= 0 ? k : pairs.findIndex((p) => p[0] === y && p[1] === x);
}

const drawsOf = (view, m) => (view === "p_stepdown" ? m.draws : m.cellDraws);
const marked = (map, i) => map.p_stepdown !== undefined && map.p_stepdown[i] <= data.alpha * (1 + 1e-9); // false for NaN

function drawLayers() {
  const m = data.measures[state.measure], pair = m.pairs[state.pair], [x, y] = pair, view = state.layerView;
  const option = (chosen) => (i) => make("option", { value: i, selected: i === chosen }, data.models[i]);
  fill("#model-x", ...[...new Set(m.pairs.map((p) => p[0]))].map(option(x)));
  fill("#model-y", ...[...new Set(m.pairs.map((p) => p[1]))].map(option(y)));
  buttons("#layer-view", CELL_VIEWS, view, (key) => { state.layerView = key; drawLayers(); drawAtlas(); });
  const map = cells(state.measure, state.pair), scale = m.maps[state.pair].scales[CELL_VIEWS.indexOf(view)], best = m.maps[state.pair].best;
  fill("#layer-map", map.lx ? layerMap(map, view, scale, best, x, y) : make("p", { class: "empty" }, "No layer map is stored for this pair."));
  const threshold = field(pair, "threshold"), single = m.maps[state.pair].threshold;
  const marks = [[single, `threshold ${number(single)}, one pair of layers (median)`], [threshold, `threshold ${number(threshold)}, the search`]];
  legend("#layer-legend", view, scale, view === "statistic" ? marks : [], drawsOf(view, m));
  fill("#layer-note", map.lx ? m.maps[state.pair].note : "");
  drawReadout();
}

function layerMap(map, view, scale, best, x, y) {
  const { lx, ly } = map, values = map[view];
  const side = Math.max(5, Math.min(64, Math.floor(Math.min(640 / ly, 540 / lx))));
  const namesX = data.layers[x], namesY = data.layers[y];
  const named = (names, count) => count <= 14 && Math.max(...names.map((n) => n.length)) <= 16;
  const withX = named(namesX, lx), withY = named(namesY, ly);
  const left = 34 + (withX ? 6.4 * Math.max(...namesX.map((n) => n.length)) : 18), bottom = 34 + (withY ? 6.4 * Math.max(...namesY.map((n) => n.length)) * 0.75 : 16);
  const width = side * ly, height = side * lx, total = Math.max(left + width + 12, left + 5.8 * data.models[y].length + 90);
  const svg = make("svg", { viewBox: `0 0 ${total} ${height + bottom + 8}`, width: total, height: height + bottom + 8, role: "img", tabindex: 0,
    "aria-label": `Layer map of ${data.models[x]} and ${data.models[y]}, ${VIEW[view].label}. Arrow keys move between cells.` });
  // What is undefined is hatched: it is not the same as chance.
  svg.append(make("defs", {}, make("pattern", { id: "hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, make("line", { x1: 0, y1: 0, x2: 0, y2: 5 }))));
  const group = make("g", { transform: `translate(${left} 6)`, "shape-rendering": "crispEdges" });
  const dots = make("g", { transform: `translate(${left} 6)`, class: "dots" });
  const at = (i, j) => ({ x: j * side, y: (lx - 1 - i) * side, width: side, height: side });
  for (let i = 0; i < lx; i++) for (let j = 0; j < ly; j++) {
    const p = place(view, values[i * ly + j], scale), color = p === null ? "qx" : `q${step(p)}`, box = at(i, j);
    group.append(make("rect", { ...box, class: `cell ${color}` }));
    if (marked(map, i * ly + j)) dots.append(make("circle", { cx: box.x + side / 2, cy: box.y + side / 2, r: Math.max(1, Math.min(3, 0.1 * side)), class: color }));
  }
  if (best) group.append(make("rect", { ...at(...best), class: "frame-out" }), make("rect", { ...at(...best), class: "frame-best" }));
  const cursor = make("rect", { width: side, height: side, class: "cursor", visibility: "hidden" });
  group.append(cursor);
  const every = (count, named) => (named ? 1 : Math.max(1, Math.ceil(count / Math.max(2, Math.floor((count * side) / 34)))));
  for (let i = 0; i < lx; i += every(lx, withX)) svg.append(make("text", { x: left - 7, y: 6 + height - (i + 0.5) * side + 4, "text-anchor": "end" }, withX ? namesX[i] : i));
  for (let j = 0; j < ly; j += every(ly, withY)) {
    const cx = left + (j + 0.5) * side, cy = height + 20;
    svg.append(make("text", withY ? { "text-anchor": "end", transform: `translate(${cx + 4} ${cy - 2}) rotate(-45)` } : { x: cx, y: cy, "text-anchor": "middle" }, withY ? namesY[j] : j));
  }
  svg.append(group, dots,
    make("text", { class: "axis-title", "text-anchor": "middle", transform: `translate(12 ${6 + height / 2}) rotate(-90)` }, height > 6.5 * (data.models[x].length + 10) ? `layers of ${data.models[x]}` : "rows"),
    make("text", { class: "axis-title", x: left, y: height + bottom + 2 }, `layers of ${data.models[y]}`));
  const move = (cell) => {
    state.cursor = cell;
    cursor.setAttribute("visibility", cell ? "visible" : "hidden");
    if (cell) for (const [key, value] of Object.entries(at(...cell))) cursor.setAttribute(key, value);
    drawReadout();
  };
  group.addEventListener("pointermove", (event) => {
    const box = group.getScreenCTM().inverse(), px = box.a * event.clientX + box.e, py = box.d * event.clientY + box.f;
    const cell = [lx - 1 - Math.floor(py / side), Math.floor(px / side)];
    if (cell[0] >= 0 && cell[0] < lx && cell[1] >= 0 && cell[1] < ly) move(cell);
  });
  group.addEventListener("pointerleave", () => move(null));
  svg.addEventListener("keydown", (event) => {
    const turn = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
    if (!turn) return;
    event.preventDefault();
    const [i, j] = state.cursor ?? best ?? [0, 0];
    move([Math.min(lx - 1, Math.max(0, i + turn[0])), Math.min(ly - 1, Math.max(0, j + turn[1]))]);
  });
  return svg;
}

function drawReadout() {
  const m = data.measures[state.measure], pair = m.pairs[state.pair], of = (name) => field(pair, name);
  const list = (rows) => make("dl", {}, ...rows.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]));
  const where = pair[2] === null ? "no pair of layers has a defined score" : `best at ${pair[2]} × ${pair[3]}`;
  const parts = [
    make("h4", {}, `${data.models[pair[0]]} × ${data.models[pair[1]]}`),
    make("p", { class: "where" }, `${where}; ${m.label}`),
    list([["Score", interval(of("statistic"), of("low"), of("high"))], ["Chance of the search", number(of("null_mean"))], ["Threshold", number(of("threshold"))],
      ["Calibrated", number(of("calibrated"))], ["p", show("pvalue", of("pvalue"), m.draws)], [VIEW[m.rule].label, show(m.rule, of(m.rule), m.draws)]]),
  ];
  const best = m.maps[state.pair].best, cell = state.cursor ?? best, map = cells(state.measure, state.pair);
  if (cell && map.lx) {
    const i = cell[0] * map.ly + cell[1];
    parts.push(make("hr"), make("h4", {}, state.cursor ? "Cell" : "Its best cell on its own"),
      make("p", { class: "where" }, `${data.layers[pair[0]][cell[0]]} × ${data.layers[pair[1]][cell[1]]}`),
      list([["Score", number(map.statistic[i])], ["Chance", number(map.null_mean[i])], ["Threshold", number(map.threshold[i])],
        ["Relative depth", cell.map((at, side) => number(at / Math.max(1, [map.lx, map.ly][side] - 1))).join(" × ")], ["Calibrated", number(map.calibrated[i])], ["p", show("pvalue", map.pvalue[i], m.cellDraws)],
        ...(map.p_stepdown ? [[VIEW.p_stepdown.label, show("p_stepdown", map.p_stepdown[i], m.draws)]] : [])]));
  }
  fill("#readout", ...parts);
}

// --- all layer maps, one colour scale -----------------------------------------------------------
function drawAtlas() {
  const m = data.measures[state.measure], view = state.layerView, scale = m.common[CELL_VIEWS.indexOf(view)], grid = m.grid;
  const style = getComputedStyle(document.documentElement);
  const rgb = (name) => { const c = style.getPropertyValue(name).trim(); return [1, 3, 5].map((k) => parseInt(c.slice(k, k + 2), 16)); };
  const colors = Array.from({ length: 32 }, (_, k) => rgb(`--q${k}`));
  const hidden = m.groups || m.pairs.length < 2 || m.maps.every((p) => !p.shape[0]);
  $("#atlas-title").hidden = $("#atlas-note").hidden = $("#atlas").hidden = hidden;
  if (hidden) return;
  const room = $("#atlas").clientWidth || 930, size = Math.max(9, Math.min(76, Math.floor((0.72 * room) / grid.columns.length) - 6));
  const head = make("tr", {}, make("td"), ...grid.columns.map((c) => make("th", { scope: "col" }, make("span", {}, c))));
  const rows = grid.rows.map((r, i) => make("tr", {}, make("th", { scope: "row" }, r), ...grid.columns.map((c, j) => {
    const k = grid.index[i][j];
    if (k < 0 || !m.maps[k].shape[0]) return make("td");
    const map = cells(state.measure, k), turned = grid.mirrored[i][j], [high, wide] = turned ? [map.ly, map.lx] : [map.lx, map.ly];
    const canvas = make("canvas", { width: wide, height: high, style: `width:${size}px;height:${size}px` });
    const pen = canvas.getContext("2d"), image = pen.createImageData(wide, high);
    for (let a = 0; a < high; a++) for (let b = 0; b < wide; b++) {
      const p = place(view, map[view][turned ? b * map.ly + a : a * map.ly + b], scale);
      image.data.set(p === null ? [0, 0, 0, 0] : [...colors[step(p)], 255], 4 * ((high - 1 - a) * wide + b));
    }
    pen.putImageData(image, 0, 0);
    const name = `Layer map of ${r} and ${c}`;
    return make("td", {}, make("button", { type: "button", title: name, "aria-label": name, "data-pair": k, "aria-pressed": String(k === state.pair),
      on: { click: () => { choosePair(k); $("#layers").scrollIntoView(); } } }, canvas));
  })));
  fill("#atlas", make("table", { class: "atlas" }, make("thead", {}, head), make("tbody", {}, ...rows)));
  const low = view === "statistic" ? `chance (${number(scale[0])})` : show(view, scale[0]);
  fill("#atlas-note", `${VIEW[view].label}, one colour scale for all pairs, from ${low} to ${show(view, scale[1])}; first layers at the lower left; holes are undefined.`);
}

// --- the table ----------------------------------------------------------------------------------
const COLUMNS = [["Scope", "scope"], ["Model x", "model_x"], ["Layer x", "layer_x"], ["Model y", "model_y"], ["Layer y", "layer_y"], ["Measure", "measure"],
  ["Score", "statistic", "num"], ["Chance", "null_mean", "num"], ["sd", "null_std", "num"], ["z", "z", "num"], ["p", "pvalue", "num"],
  ...["p_stepdown", ...data.adjusted].map((key) => [VIEW[key].label, key, "num"]), ["Threshold", "threshold", "num"], ["Calibrated", "calibrated", "num"]];
const ENDS = ["low", "high"].filter((name) => data.pairColumns.includes(name)); // of the score's interval
const table = { rows: [], shown: 0, sort: "calibrated", down: true };

// What is the same in every row needs no column; what is rarely asked for is shown on request.
function columns() {
  const scope = $("#scope").value, chosen = Number($("#table-measure").value), all = $("#all-columns").checked;
  const rules = data.measures.filter((_, i) => chosen < 0 || chosen === i).map((m) => m.rule);
  const wanted = {
    scope: scope === "all",
    measure: data.measures.length > 1 && chosen < 0,
    null_std: all,
    z: all,
    p_stepdown: scope !== "max" && CELL_VIEWS.includes("p_stepdown"),
  };
  for (const key of data.adjusted) wanted[key] = scope !== "cell" && (all ? data.pairViews.includes(key) : rules.includes(key));
  return COLUMNS.filter(([, key]) => wanted[key] ?? true);
}

function* everyRow(scope, measure) {
  for (let i = 0; i < data.measures.length; i++) {
    if (measure >= 0 && measure !== i) continue;
    const m = data.measures[i];
    for (let k = 0; k < m.pairs.length; k++) {
      const pair = m.pairs[k], base = { model_x: data.models[pair[0]], model_y: data.models[pair[1]], measure: m.repr, label: m.label, draws: m.draws, searched: m.draws };
      if (scope !== "cell") {
        const row = { ...base, scope: "max", layer_x: pair[2], layer_y: pair[3] };
        data.pairColumns.forEach((name, c) => { row[name] = pair[FIRST + c]; });
        yield row;
      }
      if (scope === "max" || !data.exact) continue;
      const map = cells(i, k);
      for (let a = 0; a < map.lx; a++) for (let b = 0; b < map.ly; b++) {
        const row = { ...base, draws: m.cellDraws, scope: "cell", layer_x: data.layers[pair[0]][a], layer_y: data.layers[pair[1]][b] };
        for (const { name } of packs[i].fields) {
          const value = map[name][a * map.ly + b];
          row[name] = Number.isNaN(value) ? null : value;
        }
        row.z = row.null_std ? (row.statistic - row.null_mean) / row.null_std : null;
        yield row;
      }
    }
  }
}

function sortRows() {
  const { sort, down } = table, way = down ? -1 : 1;
  table.rows.sort((a, b) => {
    const p = a[sort] ?? null, q = b[sort] ?? null;
    if (p === null || q === null) return (p === null) - (q === null); // undefined last, either way
    const order = typeof p === "string" ? p.localeCompare(q, "en", { numeric: true }) : p - q;
    return way * order;
  });
}

function filterRows() {
  const words = $("#find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const match = (row) => words.every((w) => [row.model_x, row.model_y, row.layer_x, row.layer_y].some((v) => (v ?? "").toLowerCase().includes(w)));
  table.rows = [...everyRow($("#scope").value, Number($("#table-measure").value))].filter(match);
  table.shown = 0;
  sortRows();
  drawTable();
}

function drawTable() {
  const heads = columns().map(([label, key, kind]) => make("th", { scope: "col", class: kind, "aria-sort": table.sort === key ? (table.down ? "descending" : "ascending") : null },
    make("button", { type: "button", "data-key": key, on: { click: () => { table.down = table.sort === key ? !table.down : kind === "num" && !key.startsWith("p"); table.sort = key; sortRows(); table.shown = 0; drawTable(); } } },
      `${label}${table.sort === key ? (table.down ? " ↓" : " ↑") : ""}`)));
  fill("#rows", make("table", { class: "plain rows" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody")));
  moreRows();
}

function moreRows() {
  const body = $("#rows tbody"), next = table.rows.slice(table.shown, table.shown + 50);
  for (const row of next) {
    body.append(make("tr", { class: row.scope }, ...columns().map(([, key, kind]) => {
      const value = row[key];
      const words = key === "scope" ? (value === "max" ? "best" : "cell") : key === "measure" ? row.label
        : kind !== "num" ? value ?? "–" : key === "statistic" ? interval(value, row.low, row.high) : show(key, value, key === "p_stepdown" ? row.searched : row.draws);
      return make("td", { class: kind }, words);
    })));
  }
  table.shown += next.length;
  const left = table.rows.length - table.shown;
  $("#more").hidden = left <= 0;
  fill("#more", `Show ${count(Math.min(50, left))} more`);
  fill("#table-count", `${count(table.shown)} of ${count(table.rows.length)} rows shown; n = ${count(data.n)} throughout. Click a heading to sort.`);
}

function download() {
  const keys = ["dataset", "n", ...COLUMNS.map((c) => c[1]), ...ENDS, "n_draws"];
  // A text that begins like a formula gets an apostrophe: a spreadsheet shows it and does not run it.
  const isFormula = (value) => typeof value === "string" && /^'*[=+\-@\t\r]/.test(value) && !Number.isFinite(Number(value));
  const quoted = (value) => { const words = value === null || value === undefined ? "" : isFormula(value) ? `'${value}` : String(value); return /[",\r\n]/.test(words) ? `"${words.replaceAll('"', '""')}"` : words; };
  const lines = table.rows.map((row) => keys.map((key) => quoted({ dataset: data.dataset, n: data.n, n_draws: row.draws }[key] ?? row[key])).join(","));
  hand(new Blob([[keys.join(","), ...lines, ""].join("\r\n")], { type: "text/csv" }), "table.csv");
}

// --- words, and pictures to take along ------------------------------------------------------------
// A word of the glossary shows its meaning where it stands; without a script the link leads to it.
addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#']");
  if (!link) return;
  const target = document.getElementById(link.hash.slice(1)), told = $("#told");
  if (link.classList.contains("term") && told.showPopover) {
    told.replaceChildren(...[...target.children].map((child) => make("p", { class: child.tagName.toLowerCase() }, child.textContent)));
    told.showPopover();
    const box = link.getBoundingClientRect();
    told.style.left = `${Math.max(8, Math.min(box.left, innerWidth - told.offsetWidth - 8))}px`;
    told.style.top = `${box.bottom + told.offsetHeight + 8 < innerHeight ? box.bottom + 6 : box.top - told.offsetHeight - 6}px`;
  } else {
    if (link.dataset.choose) chooseMeasure(data.measures.findIndex((m) => m.repr === link.dataset.choose));
    openTo(target);
    $("#menu").setAttribute("aria-expanded", "false");
  }
  event.preventDefault(); // the hash holds the measure and the pair
});
function openTo(target) {
  for (let at = target?.querySelector(":scope > details") ?? target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  target?.scrollIntoView();
}
addEventListener("scroll", () => $("#told").hidePopover?.(), { passive: true });

// A part of the page as one SVG: its boxes, its words, and the drawings in it, in the colours of the screen.
const DRAWN = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "paint-order", "opacity", "font-size", "font-family", "font-weight", "text-anchor", "visibility", "shape-rendering"];
function drawnAs(part) {
  const whole = part.getBoundingClientRect(), pad = 12, seen = (color) => color && color !== "transparent" && !/, 0\)$/.test(color);
  const [width, height] = [Math.ceil(Math.max(whole.width, part.scrollWidth)) + 2 * pad, Math.ceil(whole.height) + 2 * pad + 16];
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height }), at = (box) => ({ x: box.left - whole.left + pad, y: box.top - whole.top + pad });
  const rect = (box, color, radius) => svg.append(make("rect", { ...at(box), width: box.width, height: box.height, rx: parseFloat(radius) || 0, fill: color }));
  svg.append(make("rect", { width, height, fill: getComputedStyle(document.body).backgroundColor }));
  const write = (node, style) => {
    const range = document.createRange(), upright = style.writingMode === "horizontal-tb";
    const look = { fill: style.color, "font-size": style.fontSize, "font-family": style.fontFamily, "font-weight": style.fontWeight };
    const put = (start, end) => { // a word, or as much of it as stands on one line
      range.setStart(node, start);
      range.setEnd(node, end);
      const boxes = [...range.getClientRects()], box = boxes[0];
      if (!box) return;
      if (boxes.length > 1 && end - start > 1) {
        let cut = end - 1;
        for (; cut > start + 1; cut--) { range.setEnd(node, cut); if (range.getClientRects().length === 1) break; }
        put(start, cut);
        put(cut, end);
        return;
      }
      const { x, y } = at(box), place = upright ? { x, y: y + 0.78 * box.height } : { transform: `translate(${x + 0.78 * box.width} ${y + box.height}) rotate(-90)` };
      svg.append(make("text", { ...place, ...look }, node.data.slice(start, end)));
    };
    for (const { 0: word, index } of node.data.matchAll(/\S+/g)) put(index, index + word.length);
  };
  const walk = (node) => {
    const box = node.getBoundingClientRect(), style = getComputedStyle(node);
    if (!box.width || style.visibility === "hidden" || node.classList.contains("save")) return;
    if (node instanceof SVGSVGElement) {
      const copy = node.cloneNode(true), from = [node, ...node.querySelectorAll("*")];
      [copy, ...copy.querySelectorAll("*")].forEach((one, i) => { const now = getComputedStyle(from[i]); for (const name of DRAWN) one.style[name] = now.getPropertyValue(name); });
      for (const [key, value] of Object.entries({ ...at(box), width: box.width, height: box.height })) copy.setAttribute(key, value);
      svg.append(copy);
      return;
    }
    if (seen(style.backgroundColor)) rect(box, style.backgroundColor, style.borderRadius);
    if (node.classList.contains("ramp")) for (let k = 0; k < 32; k++) rect({ left: box.left + (k * box.width) / 32, top: box.top, width: box.width / 32 + 0.5, height: box.height }, style.getPropertyValue(`--q${k}`).trim());
    if (parseFloat(style.borderLeftWidth) > 1) rect({ left: box.left, top: box.top, width: parseFloat(style.borderLeftWidth), height: box.height }, style.borderLeftColor);
    for (const child of node.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) write(child, style);
      else if (child.nodeType === Node.ELEMENT_NODE) walk(child);
    }
  };
  walk(part);
  const about = `${data.name}; ${data.measures[state.measure].label}; n = ${data.n.toLocaleString("en-US")}; repalign`;
  svg.append(make("text", { x: pad, y: height - 8, fill: getComputedStyle(document.body).color, "font-size": 11, "font-family": "sans-serif" }, about));
  if (document.body.classList.contains("is-mock")) svg.append(make("text", { x: width / 2, y: height / 2, "text-anchor": "middle", "font-size": 24, "font-weight": 700, "font-family": "sans-serif", fill: "#c8324a", opacity: 0.5 }, "MOCK RUN: the numbers mean nothing"));
  return { width, height, text: new XMLSerializer().serializeToString(svg) };
}
function hand(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: `${`${data.name}-${name}`.replace(/[^\w.-]+/g, "-")}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
async function save(button) {
  const name = button.closest("[data-figure]").dataset.figure, part = [...document.querySelectorAll(`[data-figure-of="${name}"]`)].find((one) => one.getBoundingClientRect().width);
  const { width, height, text } = drawnAs(part), blob = new Blob([text], { type: "image/svg+xml" });
  const file = `${name}-${data.measures[state.measure].slug}.${button.dataset.save}`;
  if (button.dataset.save === "svg") return hand(blob, file);
  const url = URL.createObjectURL(blob), image = make("img", { src: url }), canvas = make("canvas", { width: 2 * width, height: 2 * height });
  await image.decode();
  canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
  URL.revokeObjectURL(url);
  return hand(await new Promise((done) => { canvas.toBlob(done); }), file);
}
for (const button of document.querySelectorAll("[data-save]")) button.addEventListener("click", () => save(button));

// --- everything together ------------------------------------------------------------------------
function chooseMeasure(index) {
  const before = data.measures[state.measure].pairs[state.pair];
  state.measure = index;
  const same = pairOf(before[0], before[1]);
  state.pair = same >= 0 ? same : data.measures[index].best;
  state.cursor = null;
  document.querySelectorAll(".by-measure").forEach((block) => { block.hidden = Number(block.dataset.measure) !== index; });
  document.querySelectorAll("#measure button").forEach((b) => b.setAttribute("aria-pressed", String(Number(b.value) === index)));
  if ($("#measure")) $("#measure").value = index;
  if ($("#first-matrix")) $(`#answer [data-measure="${index}"] .first`).append($("#first-matrix"));
  if ($("#matrix")) drawMatrix();
  drawLayers();
  drawAtlas();
  $("#table-measure").value = index;
  filterRows();
  remember();
}

// The measure and the pair stand in the address, so that a link shows what its sender saw.
function remember() {
  const m = data.measures[state.measure], pair = m.pairs[state.pair], words = [];
  if (state.measure) words.push(`m=${m.slug}`);
  if (state.pair !== m.best) words.push(`x=${encodeURIComponent(data.models[pair[0]])}`, `y=${encodeURIComponent(data.models[pair[1]])}`);
  if (words.length || location.hash.includes("=")) history.replaceState(null, "", `#${words.join("&")}`);
}
function recall() {
  const asked = new URLSearchParams(location.hash.slice(1)), measure = data.measures.findIndex((m) => m.slug === asked.get("m"));
  if (location.hash && !location.hash.includes("=")) openTo(document.getElementById(decodeURIComponent(location.hash.slice(1))));
  const [x, y] = ["x", "y"].map((side) => data.models.indexOf(asked.get(side)));
  chooseMeasure(Math.max(0, measure));
  const k = pairOf(x, y);
  choosePair(k >= 0 ? k : data.measures[state.measure].best);
}

function chooseTheme() {
  const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  drawAtlas();
}

for (const event of ["change", "click"]) $("#measure")?.addEventListener(event, ({ target }) => { if (target.value !== undefined && Number(target.value) !== state.measure) chooseMeasure(Number(target.value)); });
$("#menu").addEventListener("click", () => $("#menu").setAttribute("aria-expanded", String($("#menu").getAttribute("aria-expanded") !== "true")));
addEventListener("hashchange", recall);
addEventListener("resize", () => { if ($("#matrix")) fitMatrix(); });
for (const id of ["#model-x", "#model-y"]) $(id).addEventListener("change", () => {
  const k = pairOf(Number($("#model-x").value), Number($("#model-y").value));
  if (k >= 0) choosePair(k); else drawLayers();
});
$("#theme").addEventListener("click", chooseTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAtlas);
// Paper is light; the small maps are pixels, so they are painted again for it, and back.
let screen = null;
addEventListener("beforeprint", () => {
  const root = document.documentElement;
  screen = root.dataset.theme ?? "";
  root.dataset.theme = "light";
  document.querySelectorAll("details").forEach((d) => { d.open = true; });
  drawAtlas();
});
addEventListener("afterprint", () => {
  if (screen) document.documentElement.dataset.theme = screen;
  else delete document.documentElement.dataset.theme;
  drawAtlas();
});
const scopes = data.exact && data.cellCount ? [["max", "Pairs of models"], ["cell", "Pairs of layers"], ["all", "Both"]] : [["max", "Pairs of models"]];
fill("#scope", ...scopes.map(([value, words]) => make("option", { value }, words)));
fill("#table-measure", make("option", { value: -1 }, "All"), ...data.measures.map((m, i) => make("option", { value: i }, m.label)));
for (const id of ["#scope", "#table-measure"]) $(id).addEventListener("change", filterRows);
$("#all-columns").addEventListener("change", () => { table.shown = 0; drawTable(); });
$("#find").addEventListener("input", filterRows);
$("#more").addEventListener("click", moreRows);
$("#csv").addEventListener("click", download);
if (data.measures.some((m) => m.groups)) fill("#table-note", "This page has the best and the worst pairs of models of each measure, and the best of every two groups. All pairs are in the file named at the foot of this page.");
else if (!data.exact) fill("#table-note", `The ${data.cellCount.toLocaleString("en-US")} pairs of layers are in the layer maps above; as a table they are in the file named at the foot of this page.`);
recall();
document.documentElement.dataset.ready = "yes";
})();
