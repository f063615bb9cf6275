// Filters, charts, the table's order and the tokens of a sentence. Texts go in as text, never as HTML.
const {settings, axes, methods, texts} = JSON.parse(document.getElementById("data").textContent);
const find = (selector, from = document) => from.querySelector(selector);
const made = (name, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
};
const STAR = "M0,-2L.46,-.62L1.9,-.62L.72,.24L1.18,1.62L0,.76L-1.18,1.62L-.72,.24L-1.9,-.62L-.46,-.62Z";
const SHAPES = {
  star: STAR, circle: "circle", square: "square", triangle: "triangle-up", diamond: "diamond", cross: "cross",
  down: "triangle-down", left: "triangle-left", right: "triangle-right",
};
const MARKS = {
  star: "★", circle: "●", square: "■", triangle: "▲", diamond: "◆", cross: "✚", down: "▼", left: "◀", right: "▶",
};
const names = methods.map(method => method.name);
const scales = {
  color: {domain: names, range: methods.map(method => method.color)},
  shape: {domain: names, range: methods.map(method => SHAPES[method.shape])},
};

// ---- which settings are shown ----

const filters = document.getElementById("filters");
const hidden = new Set();
const isShown = setting => {
  const {task, backbone, words} = filters.elements;
  const text = `${setting.name} ${setting.command}`.toLowerCase();
  return (!task.value || setting.task === task.value) && (!backbone.value || setting.backbone === backbone.value)
    && !hidden.has(setting.method) && words.value.toLowerCase().split(/\s+/).every(word => text.includes(word));
};
for (const method of methods) {
  const mark = made("span", {ariaHidden: "true", textContent: MARKS[method.shape]});
  mark.style.color = method.color;
  const button = made("button", {type: "button", ariaPressed: "true"}, mark, method.name);
  button.addEventListener("click", () => {
    hidden[hidden.has(method.name) ? "delete" : "add"](method.name);
    button.ariaPressed = String(!hidden.has(method.name));
    refresh();
  });
  find("#methods").append(button);
}
filters.addEventListener("submit", event => event.preventDefault());
filters.addEventListener("input", () => refresh());

// ---- charts ----

const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const config = () => ({
  background: "transparent", font: "system-ui, sans-serif", view: {stroke: null},
  axis: {
    labelColor: style("--quiet"), titleColor: style("--text"), gridColor: style("--line"), domainColor: style("--line"),
    tickColor: style("--line"), tickCount: 5, titleFontWeight: 500, labelFontSize: 11, titleFontSize: 12,
  },
  legend: {labelColor: style("--text"), titleColor: style("--quiet")},
});
const color = {field: "method", type: "nominal", scale: scales.color, legend: null};
const shape = {field: "method", type: "nominal", scale: scales.shape, legend: null};
const said = (...fields) => fields.map(field => ({field, type: "nominal"}));
const written = pair => pair[1] === null ? `${pair[0]}` : `${pair[0]} ± ${pair[1]}`;

// those that nothing beats, as skim.report.pareto.front finds them, here among what the filters leave
function front(rows) {
  let best = -Infinity;
  const byCost = [...rows].sort((a, b) => a.cost - b.cost || b.metric - a.metric);
  return byCost.filter(row => row.metric > best && (best = row.metric, true));
}

// a metric against a cost: the line of each method, the front over all, bars of seeds, marks
function pareto(rows, axis, monitor) {
  const x = {field: "cost", type: "quantitative", title: axis.title, scale: {zero: true}};
  const values = rows.flatMap(row => [row.low, row.high]);
  const room = 0.08 * (Math.max(...values) - Math.min(...values)) || 0.01;
  const domain = [Math.min(...values) - room, Math.max(...values) + room];
  const y = {field: "metric", type: "quantitative", title: monitor, scale: {domain, nice: true}};
  if (axis.name === "parameters") x.axis = {format: ".2s"};
  return {
    data: {values: rows},
    layer: [
      ...rows.filter(row => row.method === "dense").map(row => ({data: {values: [row]},
        mark: {type: "rule", strokeDash: [4, 4], opacity: 0.7}, encoding: {y, color}})),
      {mark: {type: "line", strokeWidth: 1.2, opacity: 0.45},
        encoding: {x, y, color, detail: {field: "line"}, order: {field: "cost"}}},
      {name: "front", data: {values: front(rows)},
        mark: {type: "line", interpolate: "step-after", strokeWidth: 3, opacity: 0.35, color: style("--text")},
        encoding: {x, y, order: {field: "cost"}}},
      {mark: "rule", encoding: {x, y: {...y, field: "low"}, y2: {field: "high"}, color}},
      {mark: "rule", encoding: {y, x: {...x, field: "less"}, x2: {field: "more"}, color}},
      {mark: {type: "point", filled: true, size: 75, opacity: 1},
        encoding: {x, y, color, shape, tooltip: said("setting", "backbone", "seeds", monitor, axis.title, "command")}},
    ],
  };
}

// a line for each setting, or each of its runs
function lines(rows, x, y) {
  const point = rows.length > 400 ? false : {filled: true, size: 22};
  return {
    data: {values: rows},
    mark: {type: "line", point, strokeWidth: 1.4, opacity: 0.85},
    encoding: {x, y, color, detail: {field: "line"}, tooltip: said("setting", "seed", "at", "value", "command").filter(
      ({field}) => rows.length && rows[0][field] !== undefined)},
  };
}

const charts = [];
function add(place, rows, spec) {
  const node = made("div", {className: "chart"});
  place.append(node);
  charts.push({node, rows, spec, view: null});
}
async function draw(chart) {
  const rows = chart.rows();
  chart.node.hidden = rows.length === 0;
  chart.view?.finalize();
  chart.view = null;
  if (rows.length === 0) return;
  const spec = {width: "container", height: 250, autosize: {type: "fit", contains: "padding"}, ...chart.spec(rows)};
  const options = {renderer: "svg", actions: {export: true, source: false, compiled: false, editor: false}, config: config()};
  chart.view = (await vegaEmbed(chart.node, spec, options)).view;
  chart.view.addEventListener("click", (event, item) => item?.datum?.link && window.open(item.datum.link, "_blank"));
}
const seen = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(({target}) => {
  seen.unobserve(target);
  draw(charts.find(chart => chart.node === target));
}), {rootMargin: "400px"});

const tasks = [...new Set(settings.map(setting => setting.task))];
const of = task => settings.filter(setting => setting.task === task);
for (const task of tasks) {
  if (of(task).filter(one => one.metric).length < 2) continue;
  const place = made("div", {className: "charts"});
  const part = made("div", {}, ...(tasks.length > 1 ? [made("h3", {textContent: task})] : []), place);
  part.dataset.task = task;
  find("#pareto").append(part);
  for (const axis of axes.filter(axis => of(task).filter(one => one.metric && one.costs[axis.name]).length > 1)) {
    const {monitor} = of(task).find(setting => setting.metric);
    add(place, () => of(task).filter(one => isShown(one) && one.metric && one.costs[axis.name]).map(one => {
      const [cost, apart] = one.costs[axis.name], [metric, spread] = one.metric;
      return {
        cost, metric, low: metric - spread, high: metric + spread, less: cost - apart, more: cost + apart,
        method: one.method, line: `${one.method} ${one.line} ${one.backbone}`, link: one.link, setting: one.name,
        backbone: one.backbone, seeds: one.seeds.join(", "), command: one.command,
        [monitor]: written(one.metric), [axis.title]: written(one.costs[axis.name]),
      };
    }), rows => pareto(rows, axis, monitor));
  }
}

// charts that have a line for each setting, one chart for each task
function each(section, rows, spec) {
  for (const task of tasks.filter(task => of(task).some(setting => rows(setting).length))) {
    find(section).hidden = false;
    const named = tasks.length > 1 ? {title: {text: task, anchor: "start", color: style("--text"), fontSize: 12}} : {};
    add(find(`${section} .charts`), () => of(task).filter(isShown).flatMap(
      one => rows(one).map(row => ({method: one.method, setting: one.name, line: one.name, link: one.link,
        command: one.command, ...row}))), found => ({...named, ...spec(found)}));
  }
}
const quantity = (field, title, rest = {}) => ({field, type: "quantitative", title, ...rest});
each("#kept", one => one.kept.map((value, i) => ({at: i + 1, value})), rows => lines(
  rows, {field: "at", type: "ordinal", title: "layer", axis: {labelAngle: 0}}, quantity("value", "keep ratio", {scale: {domain: [0, 1]}})));
for (const [place, title, scale] of [[2, "score", {zero: false}], [3, "relative FLOPs", {zero: true}]])
  each("#lengths", one => one.lengths.map(group => ({from: (group[0] + group[1]) / 2, at: `${group[0]} to ${group[1]} tokens`,
    value: group[place]})), rows => lines(rows, quantity("from", "real tokens", {scale: {zero: false}}), quantity("value", title, {scale})));
const CURVES = {metric: one => one.monitor, loss: () => "training loss", flops: () => "relative FLOPs in training"};
for (const [curve, title] of Object.entries(CURVES))
  each("#training", one => one.history.filter(run => run[curve]).flatMap(run => run[curve][0].map((at, i) => (
    {at, value: run[curve][1][i], seed: run.seed, line: `${one.name} ${run.seed}`, called: title(one)}))), rows => lines(
    rows, quantity("at", "step"), quantity("value", rows[0].called, {scale: {zero: false}})));

// ---- the table ----

const body = find("#settings tbody");
find("#settings thead").addEventListener("click", event => {
  const head = event.target.closest("th");
  if (!head) return;
  const place = [...head.parentNode.children].indexOf(head);
  const up = head.ariaSort !== "ascending";
  for (const other of head.parentNode.children) other.ariaSort = "none";
  head.ariaSort = up ? "ascending" : "descending";
  const value = row => row.children[place].dataset.value ?? row.children[place].textContent;
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");  // unknown is last, either way
    const order = Number.isNaN(Number(a)) || Number.isNaN(Number(b)) ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
    return up ? order : -order;
  };
  body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
});

// ---- tokens of a sentence, by setting ----

const MOST = 24;  // settings beside each other
const STEPS = 20;  // of the ramp of shades
const step = (survived, layers) => survived >= layers ? STEPS : Math.round(0.8 * STEPS * survived / layers);
const tokens = find("#tokens"), chosen = find("form", tokens).elements;
texts.forEach((text, i) => chosen.text.append(made("option", {value: i, textContent: tasks.length > 1 ? `${text.task}: ${text.title}` : text.title})));
tokens.hidden = texts.length === 0;
find("form", tokens).addEventListener("submit", event => event.preventDefault());
find("form", tokens).addEventListener("input", () => shade());
function shade() {
  if (texts.length === 0) return;
  const inTask = texts.map((text, i) => !filters.elements.task.value || text.task === filters.elements.task.value ? i : -1);
  [...chosen.text.options].forEach((option, i) => { option.hidden = inTask[i] < 0; });
  if (inTask[chosen.text.value] < 0) chosen.text.value = inTask.find(i => i >= 0) ?? 0;
  const all = texts[chosen.text.value].read.filter(one => isShown(settings[one.setting]));
  chosen.layer.max = Math.max(1, ...all.map(one => one.rows.length));
  const layer = Number(chosen.layer.value);
  find("output", tokens).textContent = layer || "all";
  const cards = all.slice(0, MOST).map(one => {
    const layers = one.rows.length;
    let i = 0;
    const words = one.words.flatMap(word => [made("span", {}, ...word.map(piece => {
      const survived = one.survived[i++];
      const gone = layer && survived < layer ? " gone" : "";
      return made("span", {className: `s${step(survived, layers)}${gone}`, textContent: piece, title: `computed in ${survived} of ${layers} layers`});
    })), " "]);
    const at = layer ? `layer ${layer}: ${one.rows[layer - 1] ?? 0} rows` : `rows by layer: ${one.rows.join(" ")}`;
    const about = [one.prediction, one.cut ? "first tokens only" : null, at].filter(part => part !== null).join(" · ");
    return made("div", {}, made("b", {textContent: settings[one.setting].name}),
      made("p", {className: "words"}, ...words), made("small", {className: "quiet", textContent: about}));
  });
  if (all.length > MOST) cards.push(made("p", {className: "quiet", textContent: `${MOST} of ${all.length} settings; choose by the filters above`}));
  find(".texts", tokens).replaceChildren(...cards);
}

// ---- all at once ----

function refresh() {
  for (const row of body.rows) row.hidden = !isShown(settings[row.dataset.setting]);
  for (const part of document.querySelectorAll("[data-task]")) part.hidden = !of(part.dataset.task).some(isShown);
  for (const chart of charts) {
    seen.unobserve(chart.node);
    chart.node.hidden = false;
    seen.observe(chart.node);
  }
  shade();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => refresh());
refresh();
