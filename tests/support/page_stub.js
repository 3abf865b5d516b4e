// The report's script with a stub of a document:  node page_stub.js page.js data.json
// Prints what was drawn, and what each mark's place shows when it is pointed at, as JSON.
"use strict";
const fs = require("fs"), vm = require("vm");

class Element {
  constructor() {
    Object.assign(this, { attributes: {}, children: [], listeners: {}, style: {}, hidden: false, textContent: "" });
    Object.assign(this, { clientWidth: 800, clientHeight: 480, offsetWidth: 200, offsetHeight: 100 });
  }
  setAttribute(key, value) { this.attributes[key] = String(value); }
  getAttribute(key) { return this.attributes[key]; }
  append(...more) { this.children.push(...more); }
  replaceChildren(...more) { this.children = more; }
  addEventListener(kind, act) { (this.listeners[kind] ||= []).push(act); }
  getBoundingClientRect() { return { left: 0, top: 0 }; }
  querySelector() { return this.svg || new Element(); }
  fire(type, clientX, clientY) { for (const act of this.listeners[type] || []) act({ type, clientX, clientY }); }
  all() { return [this, ...this.children.flatMap(child => child.all ? child.all() : [])]; }
}

const svg = new Element(), chart = Object.assign(new Element(), { svg }), tip = new Element();
const data = Object.assign(new Element(), { textContent: fs.readFileSync(process.argv[3], "utf8") });
const known = { "chart-data": data, chart, tip };
let resized;
global.document = {
  getElementById: id => known[id] ||= new Element(), createElementNS: () => new Element(),
  createElement: () => new Element(), addEventListener() {}, activeElement: null,
};
global.ResizeObserver = class { constructor(act) { resized = act; } observe() {} };
vm.runInThisContext(fs.readFileSync(process.argv[2], "utf8"));
resized();

const named = cls => svg.all().filter(e => (e.attributes.class || "").split(" ")[0] === cls);
const place = mark => mark.attributes.transform.match(/[\d.]+/g).map(Number);
const pointed = named("mark").map(mark => {
  svg.fire("pointermove", ...place(mark).map(v => v + 1));
  const found = [mark.attributes["aria-label"].split(":")[0], [tip.children[0].textContent]];
  for (let i = 0; i < 2; i++) { svg.fire("click", ...place(mark)); found[1].push(tip.children[0].textContent); }
  return found;
});
const ends = named("error").flatMap(e => ["x1", "x2", "y1", "y2"].map(k => [k[0], Number(e.attributes[k])]));
const [, , width, height] = svg.attributes.viewBox.split(" ").map(Number);
const outside = ends.filter(([axis, v]) => !(v >= 0 && v <= (axis === "x" ? width : height))).length;
console.log(JSON.stringify({ pointed, ends: ends.length, outside }));
