"use strict";
// The interactive trade-off. Words are set as text, never as markup: names and folders are strangers' text.
(() => {
  const holder = document.getElementById("chart-data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const box = document.getElementById("chart"), svg = box.querySelector("svg"), tip = document.getElementById("tip");
  const metrics = new Map(data.metrics.map(m => [m.key, m]));
  const hidden = new Set();
  const axis = { x: data.x, y: data.y };
  const DASHES = ["", "7 3", "2 3", "8 3 2 3", "12 4"];
  const SHAPES = [  // within a circle of radius 5; the algorithms' markers of the printed figures
    "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0Z", "M-4.4-4.4H4.4V4.4H-4.4Z", "M0-5.4L5 4H-5Z", "M0 5.4L5-4H-5Z",
    "M-1.7-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z", "M0-2.2L3-5L5-3L2.2 0L5 3L3 5L0 2.2L-3 5L-5 3L-2.2 0L-5-3L-3-5Z",
    "M-5 0L-2.5-4.4H2.5L5 0L2.5 4.4H-2.5Z", "M-5.4 0L4-5V5Z",
  ];
  const STAR = "M0-8L2-2.6L7.6-2.5L3.1 1L4.7 6.5L0 3.3L-4.7 6.5L-3.1 1L-7.6-2.5L-2-2.6Z", DIAMOND = "M0-6.5L6.5 0L0 6.5L-6.5 0Z";

  function make(name, attributes, parent, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  }
  function html(name, parent, text, cls) {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (cls) element.className = cls;
    parent.append(element);
    return element;
  }
  const number = v => v === null || v === undefined ? "–"
    : v === 0 || Math.abs(v) >= 0.001 ? v.toFixed(3) : v.toExponential(0).replace(/e([+-])(\d)$/, "e$10$2");
  const cell = (point, key) => {
    const ends = point.ends && point.ends[key];
    return number(point.values[key]) + (ends ? " ± " + number((ends[1] - ends[0]) / 2) : "");
  };

  function ticks(low, high, count) {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map(s => s * power).find(s => s >= raw * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
    return found;
  }
  // Values and the ends of their intervals lie inside; ends of what lies between 0 and 1 are cut there. Shares are drawn
  // in odds, as in the printed figure: values near 0 and 1 are distinguished.
  function scale(key, values, ends, from, to) {
    const share = Math.min(...values) >= 0 && Math.max(...values) <= 1, odds = share && metrics.get(key).share;
    const cut = share ? v => Math.min(1, Math.max(0, v)) : v => v, end = data.odds.end;
    const f = odds ? v => Math.log((cut(v) + end) / (1 + end - cut(v))) : v => v;
    const all = [...values, ...ends].map(v => f(cut(v)));
    let low = Math.min(...all), high = Math.max(...all);
    const span = Math.max(high - low, odds ? 2 : 0.05 * Math.max(Math.abs(low), Math.abs(high)), 1e-12);
    low -= 0.07 * span; high += 0.07 * span;
    const at = v => from + (f(v) - low) / (high - low) * (to - from);
    const within = v => from + (Math.min(high, Math.max(low, f(v))) - low) / (high - low) * (to - from);
    const few = Math.max(3, Math.abs(to - from) / 90);
    const shown = odds ? data.odds.ticks.filter(t => f(t) >= low && f(t) <= high) : ticks(low, high, few).filter(t => !share || (t >= 0 && t <= 1));
    return { at, within, ticks: shown };
  }

  function mark(parent, item, shape, cls, x, y, fill) {
    const g = make("g", { class: "mark " + cls, tabindex: 0, role: "img", transform: `translate(${x} ${y})` }, parent);
    const said = key => `${metrics.get(key).title} ${cell(item, key)}`;
    g.setAttribute("aria-label", `${item.name}: ${said(axis.x)}; ${said(axis.y)}`);
    make("circle", { class: "ring", r: 13 }, g);
    make("path", { class: "shape", d: shape, fill, stroke: "var(--c)" }, g);
    placed.push({ item, x, y, g });
    g.addEventListener("focus", () => describe(item, x, y));
    g.addEventListener("blur", () => { tip.hidden = true; });
  }

  // Marks may lie on one another: the one nearest to the pointer is meant, whichever was drawn last; a click shows the
  // next of those that lie together.
  let placed = [], whiskers = [], shown = null;
  const REACH = 26;
  function pick(event) {
    const area = svg.getBoundingClientRect(), x = event.clientX - area.left, y = event.clientY - area.top;
    const far = m => Math.hypot(m.x - x, m.y - y);
    const nearest = placed.reduce((best, m) => !best || far(m) < far(best) ? m : best, null);
    if (nearest && far(nearest) <= REACH) {
      const near = placed.filter(m => far(m) <= far(nearest) + 2);
      const at = near.findIndex(m => m.item === shown), next = event.type === "click" && !tip.hidden ? 1 : 0;
      const chosen = at < 0 ? nearest : near[(at + next) % near.length];
      describe(chosen.item, chosen.x, chosen.y, near.length > 1 ? `${near.length} marks lie here: click for the next` : "");
    } else if (!placed.some(m => m.g === document.activeElement)) tip.hidden = true;
  }
  svg.addEventListener("pointermove", pick);
  svg.addEventListener("click", pick);
  svg.addEventListener("pointerleave", () => { if (!placed.some(m => m.g === document.activeElement)) tip.hidden = true; });

  function describe(item, x, y, more) {
    shown = item;
    for (const e of whiskers) e.line.setAttribute("class", e.item === item ? "error shown" : "error");
    tip.replaceChildren();
    html("b", tip, item.name);
    if (item.collapsed) html("div", tip, item.collapsed === item.runs.length ? "collapsed" : `${item.collapsed} of ${item.runs.length} runs collapsed`);
    const body = html("tbody", html("table", tip));
    const keys = new Set([axis.x, axis.y, ...data.metrics.filter(m => m.headline).map(m => m.key)]);
    for (const key of keys) {
      const row = html("tr", body);
      html("th", row, metrics.get(key).title);
      html("td", row, cell(item, key));
    }
    const over = item.n > 1 ? `mean over ${item.n} pair seeds; ` : "";
    if (item.ends && Object.keys(item.ends).length) html("div", tip, `${over}± half the 95 % interval${over ? "" : " over people or questions"}`);
    if (item.runs) {
      const more = item.runs.length > 4 ? ` and ${item.runs.length - 3} more` : "";
      html("div", tip, item.runs.slice(0, more ? 3 : 4).join("\n") + more, "runs").style.whiteSpace = "pre-line";
    }
    if (more) html("div", tip, more);
    tip.hidden = false;
    tip.style.left = "0";  // measured where it has all the room
    const width = tip.offsetWidth, height = tip.offsetHeight;
    const left = x + 18 + width > box.clientWidth ? x - width - 18 : x + 18;
    tip.style.left = Math.max(0, Math.min(left, box.clientWidth - width)) + "px";
    tip.style.top = Math.max(-8, Math.min(y - height / 2, box.clientHeight - height)) + "px";
    if (left < 0) tip.style.top = (y + 18) + "px";  // a narrow screen: below the mark rather than over it
  }

  function draw() {
    const width = box.clientWidth, height = Math.round(Math.max(320, Math.min(520, width * 0.6)));
    const narrow = width < 520, left = narrow ? 42 : 54, right = narrow ? 10 : 24, top = 26, bottom = 44;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    svg.setAttribute("class", data.points.length > 30 ? "many" : "");  // then the interval of the mark pointed at stands out
    svg.replaceChildren();
    placed = [];
    whiskers = [];
    tip.hidden = true;
    const there = item => item.values[axis.x] != null && item.values[axis.y] != null;
    const points = data.points.filter(p => !hidden.has(p.curve) && there(p)), references = data.references.filter(there);
    const all = [...points, ...references];
    if (!all.length) return void make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg, "nothing to show: choose a curve or another metric");
    const ends = key => all.flatMap(p => (p.ends && p.ends[key]) || []);
    const across = scale(axis.x, all.map(p => p.values[axis.x]), ends(axis.x), left, width - right);
    const up = scale(axis.y, all.map(p => p.values[axis.y]), ends(axis.y), height - bottom, top);
    for (const t of across.ticks) {
      make("line", { class: "grid", x1: across.at(t), x2: across.at(t), y1: top, y2: height - bottom }, svg);
      make("text", { x: across.at(t), y: height - bottom + 17, "text-anchor": "middle" }, svg, t);
    }
    for (const t of up.ticks) {
      make("line", { class: "grid", x1: left, x2: width - right, y1: up.at(t), y2: up.at(t) }, svg);
      make("text", { x: left - 8, y: up.at(t) + 4, "text-anchor": "end" }, svg, t);
    }
    const words = key => narrow ? metrics.get(key).title : `${metrics.get(key).title}   (${metrics.get(key).better})`;
    make("text", { x: width - right, y: height - 6, "text-anchor": "end" }, svg, words(axis.x));
    make("text", { x: left - 4, y: 12 }, svg, words(axis.y));
    const gold = references.filter(r => r.kind === "retrained");
    if (gold.length === 1) {
      const x = across.at(gold[0].values[axis.x]);
      make("line", { class: "level", x1: x, x2: x, y1: top, y2: height - bottom }, svg);
      make("text", { x, y: height - bottom - 6, "text-anchor": x > width / 2 ? "end" : "start", dx: x > width / 2 ? -5 : 5 }, svg, "aim: as the retrained model");
    }
    data.curves.forEach((curve, i) => {
      const own = points.filter(p => p.curve === i), group = make("g", { class: "s" + curve.colour % 7, "data-curve": i }, svg);
      const line = own.map(p => `${across.at(p.values[axis.x])},${up.at(p.values[axis.y])}`).join(" ");
      make("polyline", { class: "curve", points: line, stroke: "var(--c)", "stroke-dasharray": DASHES[curve.line % DASHES.length] }, group);
      for (const p of own) errors(group, p, across, up);
    });
    for (const r of references) mark(svg, r, r.kind === "target" ? STAR : DIAMOND, "reference", across.at(r.values[axis.x]), up.at(r.values[axis.y]), r.kind === "target" ? "var(--c)" : "var(--paper)");
    for (const p of points) {
      const curve = data.curves[p.curve], x = across.at(p.values[axis.x]), y = up.at(p.values[axis.y]);
      const gone = 2 * p.collapsed >= p.runs.length ? " gone" : "";  // as the printed figure marks it
      mark(svg, p, SHAPES[curve.colour % SHAPES.length], `s${curve.colour % 7}${gone}`, x, y, curve.line % 2 ? "var(--paper)" : "var(--c)");
    }
    if (points.length <= 60) label(points.map(p => [across.at(p.values[axis.x]), up.at(p.values[axis.y]), String(+p.along.toPrecision(4))]));
  }
  // Writes each α where it hits neither another nor a mark; one without room is left out: its mark says it, too.
  function label(places) {
    const taken = places.map(([x, y]) => [x - 6, y - 6, x + 6, y + 6]);
    for (const [x, y, text] of places) {
      const wide = 6.5 * text.length;
      const boxes = [[8, -14], [8, 3], [-8 - wide, -14], [-8 - wide, 3], [-wide / 2, -21], [-wide / 2, 9], [10, -5.5], [-10 - wide, -5.5]]
        .map(([dx, dy]) => [x + dx, y + dy, x + dx + wide, y + dy + 11]);
      const free = boxes.find(b => taken.every(t => b[2] < t[0] || b[0] > t[2] || b[3] < t[1] || b[1] > t[3]));
      if (!free) continue;
      taken.push(free);
      make("text", { class: "alpha", x: free[0], y: free[3] - 1.5 }, svg, text);
    }
  }
  function errors(group, p, across, up) {
    const x = across.at(p.values[axis.x]), y = up.at(p.values[axis.y]), look = { class: "error", stroke: "var(--c)" };
    const ex = p.ends[axis.x], ey = p.ends[axis.y];
    const whisker = ends => whiskers.push({ item: p, line: make("line", { ...look, ...ends }, group) });
    if (ex) whisker({ x1: across.within(ex[0]), x2: across.within(ex[1]), y1: y, y2: y });
    if (ey) whisker({ x1: x, x2: x, y1: up.within(ey[0]), y2: up.within(ey[1]) });
  }

  function sample(parent, shape, fill, dash) {
    const small = make("svg", { viewBox: "0 0 30 12", "aria-hidden": "true" }, parent);
    if (dash !== undefined) make("line", { x1: 1, x2: 29, y1: 6, y2: 6, stroke: "var(--c)", "stroke-width": 1.6, "stroke-dasharray": dash }, small);
    make("path", { d: shape, transform: "translate(15 6) scale(.85)", fill, stroke: "var(--c)", "stroke-width": 1.5 }, small);
  }
  const legend = document.getElementById("legend");
  data.curves.forEach((curve, i) => {
    const button = html("button", legend, undefined, "s" + curve.colour % 7);
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    sample(button, SHAPES[curve.colour % SHAPES.length], curve.line % 2 ? "var(--paper)" : "var(--c)", DASHES[curve.line % DASHES.length]);
    html("span", button, curve.name);
    button.addEventListener("click", () => {
      hidden.has(i) ? hidden.delete(i) : hidden.add(i);
      button.setAttribute("aria-pressed", String(!hidden.has(i)));
      draw();
    });
  });
  for (const [kind, shape, fill] of [["target", STAR, "var(--c)"], ["retrained", DIAMOND, "var(--paper)"]]) {
    if (!data.references.some(r => r.kind === kind)) continue;
    const key = html("span", legend, undefined, "key reference");
    sample(key, shape, fill);
    html("span", key, kind);
  }
  if (data.points.some(p => p.collapsed)) {
    const key = html("span", legend, undefined, "key reference");
    sample(key, SHAPES[0], "none");
    key.querySelector("path").setAttribute("stroke-dasharray", "2 1.5");
    html("span", key, "collapsed");
  }
  for (const name of ["x", "y"]) {
    const select = document.getElementById("axis-" + name);
    for (const m of data.metrics) html("option", select, m.title).value = m.key;
    select.value = axis[name];
    select.addEventListener("change", () => { axis[name] = select.value; draw(); });
  }
  document.addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });
  let drawn = 0;
  new ResizeObserver(() => { if (box.clientWidth !== drawn) { drawn = box.clientWidth; draw(); } }).observe(box);
})();
