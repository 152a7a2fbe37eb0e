// Attention over the normalised picture, one panel for each direction; moved by slider, arrow keys or token.
const branches = element.querySelector(".abm-branches");
const note = element.querySelector(".abm-empty-note");
const status = element.querySelector(".abm-status");
const HEAT = [[255, 196, 0], [255, 128, 16], [240, 62, 92], [196, 30, 140]];  // as in viz.py
const TITLES = { l2r: "Left to right", r2l: "Right to left" };
const percent = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 0 });
let panels = [], picture = null, turn = 0;

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const make = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};

function colour(value) {
  const place = Math.min(value, 0.9999) * (HEAT.length - 1), low = Math.floor(place), part = place - low;
  return HEAT[low].map((channel, i) => channel * (1 - part) + HEAT[low + 1][i] * part);
}

// One map as a small picture, one pixel for each position; the canvas smooths it when it is drawn large.
function heat(branch, index) {
  const { rows, columns } = branch, count = rows * columns;
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const context = small.getContext("2d");
  const data = context.createImageData(columns, rows);
  const sums = index < 0 ? total(branch) : null;
  for (let i = 0; i < count; i++) {
    const value = sums ? sums[i] : branch.data[index * count + i] / 255;
    data.data.set([...colour(value), Math.round(Math.sqrt(value) * 217)], 4 * i);
  }
  context.putImageData(data, 0, 0);
  return small;
}

function total(branch) {
  const count = branch.rows * branch.columns, sums = new Float32Array(count);
  let most = 1e-9;
  for (let i = 0; i < branch.data.length; i++) sums[i % count] += branch.data[i];
  for (const sum of sums) most = Math.max(most, sum);
  return sums.map((sum) => sum / most);
}

function paint(panel) {
  const { canvas, branch } = panel;
  const { width, height } = picture;
  const context = canvas.getContext("2d");
  canvas.width = 2 * width;
  canvas.height = 2 * height;
  const style = getComputedStyle(canvas);
  context.fillStyle = style.backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  const stride = 2 * branch.stride;
  if (branch.tokens.length) context.drawImage(heat(branch, panel.index), 0, 0, branch.columns * stride, branch.rows * stride);
  context.drawImage(inked(style.color), 0, 0, canvas.width, canvas.height);
}

// The ink alone, in the colour of text: brightness becomes opacity.
function inked(colour) {
  if (picture.ink && picture.inkColour === colour) return picture.ink;
  const sheet = document.createElement("canvas");
  sheet.width = picture.width;
  sheet.height = picture.height;
  const context = sheet.getContext("2d");
  context.drawImage(picture.image, 0, 0);
  const data = context.getImageData(0, 0, sheet.width, sheet.height);
  for (let i = 0; i < data.data.length; i += 4) data.data[i + 3] = data.data[i];
  context.putImageData(data, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = colour;
  context.fillRect(0, 0, sheet.width, sheet.height);
  picture.ink = sheet;
  picture.inkColour = colour;
  return sheet;
}

function go(panel, index) {
  const { tokens, scores } = panel.branch;
  panel.index = Math.max(-1, Math.min(tokens.length - 1, index));
  panel.slider.value = String(panel.index + 1);
  const here = panel.index < 0
    ? "all " + tokens.length + " tokens"
    : tokens[panel.index] + " (" + (panel.index + 1) + " of " + tokens.length + ", " + percent.format(scores[panel.index]) + ")";
  panel.slider.setAttribute("aria-valuetext", here);
  panel.caption.textContent = here;
  panel.chips.forEach((chip, i) => {
    chip.setAttribute("aria-pressed", String(i === panel.index));
    if (i === panel.index) {  // into view within its row, without scrolling the page
      const row = chip.parentElement;
      if (chip.offsetLeft < row.scrollLeft || chip.offsetLeft + chip.offsetWidth > row.scrollLeft + row.clientWidth)
        row.scrollLeft = chip.offsetLeft - row.clientWidth / 2;
    }
  });
  paint(panel);
}

// In the order of writing, which for one direction is from the end of the formula to its start.
function play(panel) {
  const last = panel.branch.tokens.length - 1;
  const [first, final, step] = panel.branch.direction === "r2l" ? [last, 0, -1] : [0, last, 1];
  if (panel.playing) { clearInterval(panel.playing); panel.playing = null; }
  else {
    if (panel.index < 0 || panel.index === final) go(panel, first);
    panel.playing = setInterval(() => {
      if (!panel.root.isConnected || panel.index === final) play(panel);
      else go(panel, panel.index < 0 ? first : panel.index + step);
    }, 450);
  }
  panel.player.querySelector("span").textContent = panel.playing ? "Pause" : "Play";
}

function panelOf(branch) {
  branch.data = bytes(branch.maps);
  const title = TITLES[branch.direction] || branch.direction;
  const panel = { branch, index: -1, playing: null, chips: [] };
  panel.root = make("section", "abm-branch");
  panel.root.setAttribute("aria-label", title);
  const frame = make("div", "abm-frame");
  panel.canvas = make("canvas", "abm-seen");
  panel.canvas.setAttribute("role", "img");
  panel.canvas.setAttribute("aria-label", "What the model saw, with its attention, reading " + title.toLowerCase());
  panel.canvas.width = 2 * picture.width;
  panel.canvas.height = 2 * picture.height;
  frame.append(panel.canvas);
  panel.caption = make("p", "abm-caption");
  panel.slider = make("input", "abm-slider");
  Object.assign(panel.slider, { type: "range", min: "0", max: String(branch.tokens.length), step: "1", value: "0" });
  panel.slider.setAttribute("aria-label", "Token, " + title.toLowerCase());
  panel.slider.addEventListener("input", () => go(panel, Number(panel.slider.value) - 1));
  const row = make("div", "abm-tokens");
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", "Tokens, " + title.toLowerCase());
  branch.tokens.forEach((token, index) => {
    const chip = make("button", "abm-chip", token);
    chip.type = "button";
    chip.title = percent.format(branch.scores[index]);
    if (branch.scores[index] < 0.5) chip.classList.add("abm-doubt");
    chip.addEventListener("click", () => go(panel, index));
    chip.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") go(panel, index); });
    panel.chips.push(chip);
    row.append(chip);
  });
  const bar = make("div", "abm-bar");
  panel.player = make("button", "abm-tool abm-small");
  panel.player.type = "button";
  panel.player.append(make("span", "", "Play"));
  panel.player.addEventListener("click", () => play(panel));
  const gif = make("button", "abm-tool abm-small");
  gif.type = "button";
  gif.append(make("span", "", "Download GIF"));
  gif.addEventListener("click", () => {
    status.textContent = "Making the animation …";
    trigger("gif", { direction: branch.direction, dark: document.body.classList.contains("dark") });
  });
  for (const control of [panel.player, gif]) control.disabled = !branch.tokens.length;
  const head = make("div", "abm-row");
  head.append(make("h3", "abm-label", title), bar);
  bar.append(panel.player, gif);
  panel.root.append(head, frame, panel.caption, panel.slider, row);
  return panel;
}

async function render() {
  const mine = ++turn;
  const value = props.value;
  status.textContent = (value && value.note) || "";
  for (const panel of panels) if (panel.playing) clearInterval(panel.playing);
  if (!value || !value.image) {
    panels = [];
    branches.hidden = true;
    note.hidden = false;
    return;
  }
  const image = new Image();
  image.src = value.image;
  try { await image.decode(); } catch { return; }
  if (mine !== turn) return;  // a newer answer has come
  picture = { image, width: image.naturalWidth, height: image.naturalHeight };
  const shown = value.branches && value.branches.length
    ? value.branches
    : [{ direction: "l2r", tokens: [], scores: [], rows: 1, columns: 1, stride: 16, maps: "" }];
  panels = shown.map((branch) => panelOf({ ...branch }));
  branches.replaceChildren(...panels.map((panel) => panel.root));
  branches.hidden = false;
  note.hidden = true;
  for (const panel of panels) go(panel, -1);
}

document.addEventListener("abm-saved", () => { status.textContent = "The animation is in your downloads."; });
watch("value", render);
new MutationObserver(() => { if (picture) panels.forEach(paint); })
  .observe(document.body, { attributes: true, attributeFilter: ["class"] });
render();
