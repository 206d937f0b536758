"use strict";
// The page draws; what it draws comes from the server, or from DATA.views where it was exported.

const OPS = ["conv", "conv_transpose", "pool", "deform random", "deform rotating"];
const FIELDS = ["kernel", "stride", "padding", "dilation", "channels", "groups"];
const NEW_LAYER = { op: "conv", kernel: 3, stride: 1, padding: 1, dilation: 1, channels: 8, groups: 1 };
const $ = (id) => document.getElementById(id);
const copy = (value) => JSON.parse(JSON.stringify(value));
const exported = DATA.views !== undefined;

let stack = copy(exported ? DATA.stack : Object.values(DATA.presets)[0]);
let shown = null;
let asked = 0;

function applies(field, op) {
  if (field === "channels" || field === "groups") return op !== "pool" && !(field === "groups" && op.startsWith("deform"));
  return field !== "amount" || op.startsWith("deform");
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
}

function numberInput(target, name, step = 1) {
  const input = element("input", { type: "number", step: step, value: target[name] ?? 1 });
  input.dataset.name = name;
  input.addEventListener("input", () => {
    target[name] = input.value === "" ? null : Number(input.value);
    update();
  });
  return element("label", {}, name + " ", input);
}

function layerRow(layer, index) {
  const op = element("select", {}, ...OPS.map((name) => element("option", { value: name, selected: name === layer.op }, name)));
  op.dataset.name = "op";
  op.setAttribute("aria-label", "kind of layer " + (index + 1));
  op.addEventListener("change", () => {
    layer.op = op.value;
    if (op.value.startsWith("deform")) Object.assign(layer, { groups: 1, amount: layer.amount ?? 1 });
    edit();
  });
  const remove = element("button", { type: "button", className: "remove", title: "remove layer " + (index + 1) }, "remove");
  remove.disabled = stack.layers.length === 1;
  remove.addEventListener("click", () => {
    stack.layers.splice(index, 1);
    edit();
  });
  const inputs = FIELDS.filter((name) => applies(name, layer.op)).map((name) => numberInput(layer, name));
  if (applies("amount", layer.op)) inputs.push(numberInput(layer, "amount", 0.1));
  return element("li", {}, op, ...inputs, remove);
}

function edit() {
  $("layers").replaceChildren(...stack.layers.map(layerRow));
  $("height").value = stack.input_size[0];
  $("width").value = stack.input_size[1];
  $("channels").value = stack.channels;
  update();
}

async function viewOf(wanted) {
  if (exported) {
    const at = wanted.at ?? DATA.views.first;
    return { ...DATA.views.shared, ...DATA.views.at[at.join(",")] };
  }
  const answer = await fetch("view", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(wanted),
  });
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  return value;
}

async function update() {
  const mine = ++asked;
  try {
    const found = await viewOf(stack);
    if (mine !== asked) return; // something newer is on its way
    shown = found;
    stack.at = found.at;
    $("error").hidden = true;
    $("summary").textContent = found.summary + (found.points ? "; it samples " + found.points.length + " points" : "");
    draw();
  } catch (error) {
    if (mine !== asked) return;
    $("error").textContent = error instanceof TypeError ? "the server does not answer" : error.message;
    $("error").hidden = false;
  }
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// The scale and the corner that show `box` (top, left, height, width), in a canvas.
function placement(canvas, box) {
  const [top, left, height, width] = box;
  const scale = Math.min((canvas.width - 2) / width, (canvas.height - 2) / height);
  return {
    scale,
    x: (column) => (canvas.width - width * scale) / 2 + (column - left) * scale,
    y: (row) => (canvas.height - height * scale) / 2 + (row - top) * scale,
  };
}

function frame(canvas, size, place) {
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.strokeStyle = colour("--line");
  pen.lineWidth = 1;
  pen.beginPath();
  const step = place.scale > 4 ? 1 : Math.max(...size);
  for (let row = 0; row <= size[0]; row += step) {
    pen.moveTo(place.x(0), place.y(row));
    pen.lineTo(place.x(size[1]), place.y(row));
  }
  for (let column = 0; column <= size[1]; column += step) {
    pen.moveTo(place.x(column), place.y(0));
    pen.lineTo(place.x(column), place.y(size[0]));
  }
  pen.stroke();
  return pen;
}

function drawInput() {
  const canvas = $("input");
  const size = shown.sizes[0];
  const place = placement(canvas, [0, 0, ...size]);
  const pen = frame(canvas, size, place);
  const [top, left, height, width] = shown.box;
  pen.fillStyle = colour("--field");
  const gap = place.scale > 4 ? 0.5 : 0;
  for (let index = 0; index < height * width; index++) {
    if (!shown.ways[index]) continue;
    pen.globalAlpha = 0.25 + 0.75 * Math.sqrt(shown.ways[index]);
    const [row, column] = [top + Math.floor(index / width), left + (index % width)];
    pen.fillRect(place.x(column) + gap, place.y(row) + gap, place.scale - 2 * gap, place.scale - 2 * gap);
  }
  pen.globalAlpha = 1;
  if (!shown.points) return;
  pen.fillStyle = colour("--accent");
  const radius = Math.max(1.2, Math.min(4, 40 / Math.sqrt(shown.points.length)));
  for (const [y, x] of shown.points) {
    pen.beginPath();
    pen.arc(place.x(x + 0.5), place.y(y + 0.5), radius, 0, 2 * Math.PI);
    pen.fill();
  }
}

function drawOutput() {
  const canvas = $("output");
  const size = shown.sizes[shown.sizes.length - 1];
  const place = placement(canvas, [0, 0, ...size]);
  const pen = frame(canvas, size, place);
  const [row, column] = shown.at;
  const side = Math.max(place.scale, 4);
  pen.fillStyle = colour("--accent");
  pen.fillRect(place.x(column), place.y(row), side, side);
}

function drawTable() {
  const names = Object.keys(shown.rows[0]);
  $("table").replaceChildren(
    element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...shown.rows.map((row) => element("tr", {}, ...names.map((name) => element("td", {}, row[name]))))),
  );
}

function draw() {
  drawInput();
  drawOutput();
  drawTable();
}

function moveTo(row, column) {
  const [height, width] = shown.sizes[shown.sizes.length - 1];
  const at = [Math.max(0, Math.min(height - 1, row)), Math.max(0, Math.min(width - 1, column))];
  if (at[0] === stack.at[0] && at[1] === stack.at[1]) return;
  stack.at = at;
  update();
}

function point(event) {
  const canvas = $("output");
  const bounds = canvas.getBoundingClientRect();
  const place = placement(canvas, [0, 0, ...shown.sizes[shown.sizes.length - 1]]);
  const x = ((event.clientX - bounds.left) * canvas.width) / bounds.width;
  const y = ((event.clientY - bounds.top) * canvas.height) / bounds.height;
  moveTo(Math.floor((y - place.y(0)) / place.scale), Math.floor((x - place.x(0)) / place.scale));
}

function start() {
  $("preset").append(...Object.keys(DATA.presets).map((name) => element("option", { value: name }, name)));
  $("preset").addEventListener("change", () => {
    stack = copy(DATA.presets[$("preset").value]);
    edit();
  });
  for (const [id, axis] of [["height", 0], ["width", 1]]) {
    $(id).addEventListener("input", () => {
      stack.input_size[axis] = Number($(id).value);
      update();
    });
  }
  $("channels").addEventListener("input", () => {
    stack.channels = Number($("channels").value);
    update();
  });
  $("add").addEventListener("click", () => {
    stack.layers.push({ ...NEW_LAYER });
    edit();
  });
  const output = $("output");
  output.addEventListener("pointerdown", (event) => {
    output.setPointerCapture(event.pointerId);
    point(event);
  });
  output.addEventListener("pointermove", (event) => {
    if (event.buttons) point(event);
  });
  output.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    moveTo(stack.at[0] + step[0], stack.at[1] + step[1]);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shown && draw());
  $("editor").disabled = exported;
  $("preset-label").hidden = exported;
  edit();
}

start();
