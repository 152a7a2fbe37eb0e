// A place for files: chosen, dropped, pasted or photographed. They go to the server as JSON, never as an upload.
const MOST_BYTES = 6 * 1024 * 1024;  // as in inputs.py
const LONG_SIDE = 2000;              // px: more does not make handwriting clearer
const zone = element.querySelector(".abm-drop");
const input = element.querySelector(".abm-file");
const preview = element.querySelector(".abm-preview");
const invite = element.querySelector(".abm-invite");
const image = preview.querySelector("img");
const video = preview.querySelector("video");
const status = element.querySelector(".abm-status");
const button = Object.fromEntries([...element.querySelectorAll("[data-do]")].map((b) => [b.dataset.do, b]));
let camera = null, address = null;

function say(text, bad = false) {
  status.textContent = text;
  status.classList.toggle("abm-bad", bad);
}

function show(what) {
  preview.hidden = !what;
  invite.hidden = !!what;
  image.hidden = what !== image;
  video.hidden = what !== video;
}

const base64 = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(blob);
});

// Photographs are scaled down here: ten times less to send, and upright, as the browser knows the camera's turn.
async function smaller(file) {
  let bitmap;
  try { bitmap = await createImageBitmap(file); } catch { return [file, false]; }  // the server says what is wrong with it
  const { width, height } = bitmap;
  const scale = Math.min(1, LONG_SIDE / Math.max(width, height));
  if (scale === 1 && file.size <= MOST_BYTES) { bitmap.close(); return [file, true]; }
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const kind = file.type === "image/jpeg" ? "image/jpeg" : "image/png";
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, kind, 0.92));
  return [blob || file, true];
}

async function open(file) {
  if (!file) return;
  stop();
  say("");
  const isSvg = /svg/.test(file.type) || /\.svg$/i.test(file.name || "");
  if (file.size > 64 * 1024 * 1024) { show(null); say("This file is too large: 64 MB is the most that is opened.", true); return; }
  const [blob, visible] = isSvg ? [file, false] : await smaller(file);
  if (blob.size > MOST_BYTES) { show(null); say("This file is too large: 6 MB is the limit.", true); return; }
  if (address) URL.revokeObjectURL(address);
  address = null;
  if (visible) { address = URL.createObjectURL(blob); image.src = address; show(image); } else show(null);
  say("Reading " + (file.name || "the picture") + " …");
  try { props.value = await base64(blob); } catch { say("This file cannot be read.", true); return; }
  document.dispatchEvent(new CustomEvent("abm-sent"));
  trigger("picked");
}

// The server answers with an empty value: the file is gone there, too.
watch("value", () => { if (!props.value) say(""); });

input.addEventListener("change", () => { open(input.files[0]); input.value = ""; });
button.choose.addEventListener("click", () => input.click());
zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("abm-over"); });
zone.addEventListener("dragleave", () => zone.classList.remove("abm-over"));
zone.addEventListener("drop", (event) => {
  event.preventDefault();
  zone.classList.remove("abm-over");
  open(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (!element.isConnected || !element.offsetParent) return;  // another tab is open
  const file = [...(event.clipboardData ? event.clipboardData.files : [])][0];
  if (file) { event.preventDefault(); open(file); }
});

function stop() {
  if (camera) for (const track of camera.getTracks()) track.stop();
  camera = null;
  video.srcObject = null;
  button.stop.hidden = true;
  button.camera.querySelector("span").textContent = "Take a photo";
  if (!video.hidden) show(null);
}
button.stop.addEventListener("click", stop);
button.camera.addEventListener("click", async () => {
  if (camera) {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => open(blob && new File([blob], "the photo", { type: "image/jpeg" })), "image/jpeg", 0.92);
    return;
  }
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch {
    // No camera, or no permission: a phone still offers its camera for a file.
    say("There is no camera that this page may use. You can choose a photo instead.", true);
    input.setAttribute("capture", "environment");
    return;
  }
  say("Hold the formula still, then press “Take it”.");
  video.srcObject = camera;
  show(video);
  await video.play();
  button.camera.querySelector("span").textContent = "Take it";
  button.stop.hidden = false;
});
show(null);
