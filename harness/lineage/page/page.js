"use strict";
// Text from the store is only ever assigned to textContent, so it cannot become markup.
const { runs, boxes, arrows } = JSON.parse(document.getElementById("data").textContent);
const details = document.getElementById("details");
const filter = document.getElementById("filter");
const hint = details.firstElementChild;
const rows = [...document.querySelectorAll("#runs tbody tr")];
const shapes = new Map(Object.keys(boxes).map((name) => [name, document.getElementById(name)]));
const lines = new Map(Object.keys(arrows).map((name) => [name, document.getElementById(name)]));
const hidden = new Set();
let kept = null;

const make = (tag, text, parent) => {
  const made = document.createElement(tag);
  made.textContent = text;
  if (parent) parent.append(made);
  return made;
};
const title = (name) => (runs[boxes[name].key] && boxes[name].kind !== "mask" ? runs[boxes[name].key].name : boxes[name].lines.join(" "));

// --- Ancestors and descendants of a box ---
function reach(start, from, to) {
  const found = new Set([start]);
  for (const name of found)
    for (const arrow of Object.values(arrows)) if (arrow[from] === name) found.add(arrow[to]);
  return found;
}

function show(name) {
  const near = name && new Set([...reach(name, 1, 0), ...reach(name, 0, 1)]);
  for (const [box, shape] of shapes) {
    shape.classList.toggle("chosen", box === name);
    shape.classList.toggle("dim", !fits(box) || Boolean(near && !near.has(box)));
  }
  for (const [arrow, line] of lines) {
    const [tail, head] = arrows[arrow];
    line.classList.toggle("dim", !fits(tail) || !fits(head) || Boolean(near && !(near.has(tail) && near.has(head))));
  }
  for (const row of rows) row.classList.toggle("chosen", Boolean(name && boxes[name].key === row.dataset.key));
  details.replaceChildren(...(name ? describe(name) : [hint]));
}

function describe(name) {
  const box = boxes[name], run = runs[box.key], parts = [make("h2", title(name))];
  parts.push(make("p", box.kind.replace("theta_init", "θ_init")));
  if (run && run.link) {
    const link = make("a", "open the run in MLflow");
    Object.assign(link, { href: run.link, target: "_blank", rel: "noopener" });
    parts.push(link);
  }
  parts.push(...relatives("parents", name, 1, 0), ...relatives("children", name, 0, 1));
  if (run) for (const what of ["metrics", "tags", "files"]) parts.push(...list(what, run[what]));
  if (run && run.run) parts.push(...list("run ID", { "": run.run }));
  return parts;
}

function relatives(heading, name, own, other) {
  const found = Object.values(arrows).filter((arrow) => arrow[own] === name);
  if (!found.length) return [];
  const items = document.createElement("ul");
  for (const arrow of found) {
    const item = make("li", `${arrow[2]} `, items);
    make("a", title(arrow[other]), item).addEventListener("click", () => keep(arrow[other]));
  }
  return [make("h3", heading), items];
}

function list(heading, values) {
  const entries = Object.entries(values);
  if (!entries.length) return [];
  const items = document.createElement("dl");
  for (const [key, value] of entries) {
    make("dt", key, items);
    make("dd", typeof value === "number" ? Number(value.toPrecision(6)) : value, items);
  }
  return [make("h3", heading), items];
}

function keep(name) {
  kept = kept === name ? null : name;
  show(kept);
}

// --- Filtering ---
const texts = new Map(Object.entries(runs).map(([key, run]) => [key, JSON.stringify([key, run]).toLowerCase()]));
function fits(name) {
  const box = boxes[name], wanted = filter.value.trim().toLowerCase();
  if (hidden.has(box.kind)) return false;
  return !wanted || (texts.get(box.key) || box.lines.join(" ").toLowerCase()).includes(wanted);
}
function narrow() {
  const wanted = filter.value.trim().toLowerCase();
  for (const row of rows) row.hidden = hidden.has(runs[row.dataset.key].kind) || !texts.get(row.dataset.key).includes(wanted);
  show(kept);
}
filter.addEventListener("input", narrow);
const kinds = ["data", "theta_init", "level", "mask", "training", "analysis", "report", "missing"];
for (const kind of kinds.filter((one) => Object.values(boxes).some((box) => box.kind === one))) {
  const label = document.createElement("label"), tick = document.createElement("input");
  Object.assign(tick, { type: "checkbox", checked: true });
  label.append(tick, ` ${kind.replace("theta_init", "θ_init")}`);
  document.getElementById("kinds").append(label);
  tick.addEventListener("change", () => {
    if (tick.checked) hidden.delete(kind);
    else hidden.add(kind);
    narrow();
  });
}

// --- Pointing, panning, zooming ---
for (const [name, shape] of shapes) {
  shape.addEventListener("mouseenter", () => kept || show(name));
  shape.addEventListener("mouseleave", () => kept || show(null));
  shape.addEventListener("click", () => keep(name));
}
for (const row of rows)
  row.addEventListener("click", (event) => {
    const name = event.target.closest("a") ? null : Object.keys(boxes).find((box) => boxes[box].key === row.dataset.key && boxes[box].kind !== "mask");
    if (name) keep(name);
  });
for (const svg of document.querySelectorAll("#graph svg")) {
  const whole = svg.getAttribute("viewBox").split(/[ ,]+/).map(Number);
  let view = [...whole], held = null;
  const look = (next) => svg.setAttribute("viewBox", (view = next).join(" "));
  const scale = () => 1 / svg.getScreenCTM().a;
  svg.removeAttribute("width");
  svg.removeAttribute("height");
  svg.addEventListener("wheel", (event) => {
    event.preventDefault();
    const factor = Math.exp(event.deltaY / 600);
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    look([place.x - (place.x - view[0]) * factor, place.y - (place.y - view[1]) * factor, view[2] * factor, view[3] * factor]);
  }, { passive: false });
  svg.addEventListener("pointerdown", (event) => { held = [event.clientX, event.clientY]; });
  window.addEventListener("pointermove", (event) => {
    if (!held) return;
    const by = scale();
    look([view[0] - (event.clientX - held[0]) * by, view[1] - (event.clientY - held[1]) * by, view[2], view[3]]);
    held = [event.clientX, event.clientY];
  });
  window.addEventListener("pointerup", () => { held = null; });
  document.getElementById("fit").addEventListener("click", () => look([...whole]));
}

// --- Sorting ---
document.querySelectorAll("#runs th").forEach((head, column) => {
  let up = false;
  head.addEventListener("click", () => {
    up = !up;
    const cell = (row) => row.children[column].textContent;
    const order = (a, b) => cell(a).localeCompare(cell(b), undefined, { numeric: true }) * (up ? 1 : -1);
    document.querySelector("#runs tbody").append(...rows.sort(order));
  });
});
