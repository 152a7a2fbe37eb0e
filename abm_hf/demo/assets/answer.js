// The answer. Everything from the server is set as text; only MathML is parsed, as XML, and copied without attributes.
const find = (name) => element.querySelector("." + name);
const percent = new Intl.NumberFormat(undefined, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const MATH = "http://www.w3.org/1998/Math/MathML";

function formula(markup) {
  if (!markup) return null;
  const parsed = new DOMParser().parseFromString(markup, "application/xml").documentElement;
  if (parsed.namespaceURI !== MATH || parsed.getElementsByTagName("parsererror").length) return null;
  const copy = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return document.createTextNode(node.data);
    if (node.namespaceURI !== MATH) return document.createTextNode("");
    const made = document.createElementNS(MATH, node.localName);
    if (node.getAttribute("stretchy")) made.setAttribute("stretchy", node.getAttribute("stretchy"));
    for (const child of node.childNodes) made.appendChild(copy(child));
    return made;
  };
  const made = copy(parsed);
  made.setAttribute("displaystyle", "true");  // full-size fractions
  return made;
}

function render() {
  const answer = props.value && typeof props.value === "object" ? props.value : {};
  const read = typeof answer.latex === "string";
  find("abm-answer").classList.toggle("abm-none", !read);
  find("abm-latex").textContent = read ? answer.latex : "";
  find("abm-mathml").textContent = answer.mathml || (read ? "This is not well formed, so there is no MathML." : "");
  find("abm-score").textContent = read ? "probability " + percent.format(answer.score) : "";
  find("abm-time").textContent = read ? whole.format(Math.max(1, answer.milliseconds)) + " ms" : "";
  const badge = find("abm-badge");
  badge.hidden = !(read && answer.unsure);
  badge.textContent = "unsure – please check";
  const notice = find("abm-notice");
  let text = answer.error || "";
  if (read && !answer.complete) text = "The formula was too long to be read to its end.";
  else if (read && !answer.latex) text = "Nothing was read in this picture.";
  else if (read && !answer.mathml) text = "This is not well-formed LaTeX. With grammar on, it always is.";
  notice.textContent = text;
  notice.hidden = !text;
  for (const button of element.querySelectorAll("[data-copy]")) button.disabled = !answer[button.dataset.copy];
  list(read ? answer.hypotheses || [] : []);
}

function list(hypotheses) {
  const items = hypotheses.map((hypothesis) => {
    const item = document.createElement("li");
    const bar = document.createElement("span");
    bar.className = "abm-meter";
    bar.style.setProperty("--part", String(hypothesis.score));
    const score = document.createElement("span");
    score.className = "abm-percent";
    score.textContent = percent.format(hypothesis.score);
    const shown = document.createElement("span");
    shown.className = "abm-math";
    shown.append(formula(hypothesis.mathml) || "–");
    const code = document.createElement("code");
    code.textContent = hypothesis.latex;
    item.append(score, shown, bar, code);
    return item;
  });
  find("abm-hypotheses").replaceChildren(...items);
  const summary = element.querySelector(".abm-more summary");
  summary.textContent = hypotheses.length ? "Answers (" + hypotheses.length + ")" : "Answers";
}

for (const button of element.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = props.value[button.dataset.copy];
    const label = button.querySelector("span");
    try {
      await navigator.clipboard.writeText(text);
      label.textContent = "Copied";
    } catch {  // no permission, or a page without https: select it for Ctrl C instead
      const range = document.createRange();
      range.selectNodeContents(find(button.dataset.copy === "latex" ? "abm-latex" : "abm-mathml"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      label.textContent = document.execCommand && document.execCommand("copy") ? "Copied" : "Press Ctrl C";
    }
    setTimeout(() => { label.textContent = "Copy"; }, 1600);
  });
}
// The pad and its neighbours say when they have sent something.
let waiting = null;
function busy(is) {
  clearTimeout(waiting);
  find("abm-answer").setAttribute("aria-busy", String(is));
  if (is) waiting = setTimeout(() => busy(false), 90000);
}
document.addEventListener("abm-sent", () => busy(true));
watch("value", () => { busy(false); render(); });
render();
