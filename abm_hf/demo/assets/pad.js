// Ink pad: keeps what the pen wrote as strokes of [x, y, milliseconds], and sends them when the pen rests.
const REST_MS = 900;          // the pen has been away this long: time to read
const WIDTH = 2.6;            // px
const REACH = 9;              // px from the eraser to a stroke
const pad = element.querySelector(".abm-pad");
const canvas = element.querySelector(".abm-canvas");
const status = element.querySelector(".abm-status");
const context = canvas.getContext("2d");
const buttons = Object.fromEntries([...element.querySelectorAll("[data-do]")].map((b) => [b.dataset.do, b]));

let strokes = [];             // finished strokes
let past = [], future = [];   // earlier and undone states: lists of strokes, which are never changed in place
let current = null;           // the stroke being written
let pointer = null;           // id of the pointer that writes; others are ignored (a resting palm)
let erasing = false;          // the eraser tool
let before = null;            // state before the eraser's present sweep
let wiped = null;             // where the eraser was last
let began = null;             // time of the first point
let timer = null, view = 1, sent = null;

const size = () => canvas.getBoundingClientRect();

function fit() {
  const { width, height } = size();
  if (!width) return;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  draw();
}

function extent() {
  let right = 0, bottom = 0;
  for (const stroke of strokes) for (const [x, y] of stroke) { right = Math.max(right, x); bottom = Math.max(bottom, y); }
  return [right + 12, bottom + 12];
}

function draw() {
  const { width, height } = size();
  const ratio = window.devicePixelRatio || 1;
  const [right, bottom] = extent();
  // Ink written on a wider screen, or loaded, stays visible as a whole.
  if (!current) view = Math.min(1, width / right, height / bottom);
  context.setTransform(ratio * view, 0, 0, ratio * view, 0, 0);
  context.clearRect(0, 0, width / view, height / view);
  context.strokeStyle = context.fillStyle = getComputedStyle(canvas).color;
  context.lineWidth = WIDTH / Math.max(view, 0.6);
  context.lineCap = context.lineJoin = "round";
  for (const stroke of current ? [...strokes, current] : strokes) trace(stroke);
  pad.classList.toggle("abm-empty", !strokes.length && !current);
}

function trace(points) {
  context.beginPath();
  if (points.length < 3) {
    const [x, y] = points[0];
    const [toX, toY] = points[points.length - 1];
    context.moveTo(x, y);
    context.lineTo(toX + 0.01, toY);
  } else {
    context.moveTo(points[0][0], points[0][1]);
    for (let i = 1; i < points.length - 1; i++) {
      const [x, y] = points[i], [nextX, nextY] = points[i + 1];
      context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
    }
    const [x, y] = points[points.length - 1];
    context.lineTo(x, y);
  }
  context.stroke();
}

function at(event) {
  const box = size();
  const time = Math.round(event.timeStamp);
  if (began === null) began = time;
  const round = (value) => Math.round(value * 10) / 10;
  return [round((event.clientX - box.left) / view), round((event.clientY - box.top) / view), time - began];
}

function far([x, y], stroke) {
  const reach = REACH / view;
  for (let i = 0; i < stroke.length; i++) {
    const [ax, ay] = stroke[i], [bx, by] = stroke[Math.min(i + 1, stroke.length - 1)];
    const dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
    const t = length ? Math.max(0, Math.min(1, ((x - ax) * dx + (y - ay) * dy) / length)) : 0;
    if (Math.hypot(x - ax - t * dx, y - ay - t * dy) < reach) return false;
  }
  return true;
}

// The eraser moves in jumps as wide as the hand is fast: what lies between counts too.
function erase(point) {
  const [fromX, fromY] = wiped || point;
  const steps = Math.max(1, Math.ceil(Math.hypot(point[0] - fromX, point[1] - fromY) * view / (REACH / 2)));
  let left = strokes;
  for (let i = 1; i <= steps; i++) {
    const place = [fromX + (point[0] - fromX) * i / steps, fromY + (point[1] - fromY) * i / steps];
    left = left.filter((stroke) => far(place, stroke));
  }
  wiped = point;
  if (left.length < strokes.length) { strokes = left; draw(); }
}

function change(next, previous = strokes) {
  past.push(previous);
  if (past.length > 200) past.shift();
  future = [];
  strokes = next;
  settle();
}

function settle(wait = REST_MS) {
  draw();
  refresh();
  clearTimeout(timer);
  send();
  timer = setTimeout(() => { announce(); trigger("rest"); }, strokes.length ? wait : 0);
}

const announce = () => document.dispatchEvent(new CustomEvent("abm-sent"));

function send() {
  sent = JSON.stringify({ strokes });
  props.value = sent;
}

function refresh() {
  buttons.undo.disabled = !past.length;
  buttons.redo.disabled = !future.length;
  buttons.clear.disabled = !strokes.length;
  buttons.read.disabled = !strokes.length;
  buttons.erase.setAttribute("aria-pressed", String(erasing));
  pad.dataset.mode = erasing ? "eraser" : "pen";
  const count = strokes.length;
  status.textContent = count ? (count === 1 ? "1 stroke" : count + " strokes") : "";
}

function step(from, to) {
  if (!from.length) return;
  to.push(strokes);
  strokes = from.pop();
  settle();
}

const actions = {
  undo: () => step(past, future),
  redo: () => step(future, past),
  erase: () => { erasing = !erasing; refresh(); },
  clear: () => { if (strokes.length) { erasing = false; began = null; change([]); canvas.focus({ preventScroll: true }); } },
  read: () => { if (strokes.length) { clearTimeout(timer); send(); announce(); trigger("read"); } },
};
for (const [name, button] of Object.entries(buttons)) button.addEventListener("click", actions[name]);

canvas.addEventListener("pointerdown", (event) => {
  if (pointer !== null || (event.pointerType === "mouse" && event.button !== 0 && event.button !== 5)) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  clearTimeout(timer);
  pointer = event.pointerId;
  try { canvas.setPointerCapture(pointer); } catch { /* synthetic events have no pointer to capture */ }
  if (erasing || event.button === 5) { before = strokes; wiped = null; erase(at(event)); }
  else { current = [at(event)]; draw(); }
});

canvas.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  for (const moved of events.length ? events : [event]) {
    const point = at(moved);
    if (before) erase(point);
    else {
      const last = current[current.length - 1];
      if (last[0] !== point[0] || last[1] !== point[1]) current.push(point);
    }
  }
  if (current) draw();
});

function lift(event) {
  if (event.pointerId !== pointer) return;
  pointer = null;
  if (before) {
    const previous = before;
    before = null;
    if (previous !== strokes) change(strokes, previous);
  } else if (current) {
    const stroke = current;
    current = null;
    if (event.type === "pointercancel") draw();   // the finger turned out to scroll or zoom
    else change([...strokes, stroke]);
  }
}
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);
canvas.addEventListener("contextmenu", (event) => event.preventDefault());

canvas.addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  const command = event.ctrlKey || event.metaKey;
  let action = null;
  if (command && key === "z") action = event.shiftKey ? "redo" : "undo";
  else if (command && key === "y") action = "redo";
  else if (command || event.altKey) return;
  else action = { enter: "read", e: "erase", delete: "clear", backspace: "undo" }[key];
  if (action) { event.preventDefault(); actions[action](); }
});

// Ink from elsewhere: an example or an InkML file.
watch("value", () => {
  if (props.value === sent) return;
  sent = props.value;
  let loaded = [];
  try { loaded = (JSON.parse(props.value || "{}").strokes || []).filter((stroke) => stroke.length); } catch { /* none */ }
  clearTimeout(timer);
  past.push(strokes);
  future = [];
  strokes = place(loaded);
  send();
  draw();
  refresh();
});

function place(loaded) {
  if (!loaded.length) return [];
  const { width, height } = size();
  const xs = loaded.flatMap((s) => s.map((p) => p[0])), ys = loaded.flatMap((s) => s.map((p) => p[1]));
  const min = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
  const max = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
  const left = min(xs), top = min(ys), wide = max(xs) - left || 1, high = max(ys) - top || 1;
  const room = 32;
  const scale = Math.min(((width || 600) - room) / wide, ((height || 300) - room) / high);
  const x0 = ((width || 600) - wide * scale) / 2, y0 = ((height || 300) - high * scale) / 2;
  return loaded.map((s) => s.map(([x, y, t]) => [(x - left) * scale + x0, (y - top) * scale + y0, t || 0]));
}

new ResizeObserver(fit).observe(canvas);
new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
fit();
refresh();
