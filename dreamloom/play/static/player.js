// The page: one socket, one canvas. Binary messages are pictures, text messages are JSON (dreamloom/play/messages.py).

import { Hands, heldKey, keyLabel } from "./input.js";
import { FRAME, PROMPT, THUMBNAIL, paint, unpack } from "./pixels.js";
import { wireSettings } from "./settings.js";
import { wireSketch } from "./sketch.js";
import { wireWorlds } from "./worlds.js";

const $ = (id) => document.getElementById(id);
const frame = $("frame");

let socket, world, newest = null, drawn = null, nextId = 1, chosen = 0, recordedFrom = 0;
let status = { paused: false, real: false, recording: false, recorded: 0 };
const asked = new Map(); // input id -> time of the key
const shownAt = [], waits = []; // times of the newest frames; newest key-to-pixel times

// -- the socket

let playing = ""; // the world's name on the server's shelf

function connect() {
  if (socket) socket.onclose = socket.onmessage = null;
  socket?.close();
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/socket?world=${encodeURIComponent(playing)}`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => (typeof data === "string" ? hear(JSON.parse(data)) : see(data));
  socket.onclose = ({ reason }) => curtain(reason || "the world is gone", true);
}

/** Goes to a world; nothing of the one before is left. */
function enter(name) {
  playing = name;
  hands.releaseAll();
  newest = drawn = null;
  asked.clear();
  shownAt.length = waits.length = 0;
  status = { paused: false, real: false, recording: false, recorded: 0 };
  delete document.body.dataset.sequence;
  showDoubt({ doubt: null, index: 0 });
  curtain(name ? `waking ${name} up` : "waking the world up", false);
  connect();
}

function send(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function hear(message) {
  if (message.type === "hello") meet(message);
  else if (message.type === "error") toast(message.message);
  else if (message.type === "status") {
    status = message;
    showStatus();
  }
}

function see(buffer) {
  const picture = unpack(buffer);
  if (picture.kind === THUMBNAIL) {
    const at = world.actions.findIndex(({ action }) => action === picture.index);
    paint($("actions").children[at]?.querySelector("canvas"), picture);
  } else if (picture.kind === PROMPT) paint($("gallery").children[picture.index]?.querySelector("canvas"), picture);
  else if (picture.kind === FRAME) {
    if (!newest) requestAnimationFrame(showNewest);
    newest = picture;
  }
}

function showNewest() {
  if (!newest) return; // another world was entered
  paint(frame, newest);
  drawn = newest;
  newest = null;
  const now = performance.now();
  shownAt.push(now);
  for (const [id, time] of asked) {
    if (id > drawn.stamp) break;
    if (id === drawn.stamp) waits.push(now - time);
    asked.delete(id);
  }
  if (waits.length > 100) waits.shift();
  $("curtain").classList.add("up");
  if (status.recording) showRecorded();
  showDoubt(drawn);
  document.body.dataset.sequence = drawn.sequence;
}

/** The quiet bar, and the border that warns when nothing is left to be seen. */
function showDoubt({ doubt, index }) {
  const bar = $("unsure"), part = Math.round(100 * (doubt ?? 0));
  bar.hidden = doubt === null;
  bar.setAttribute("aria-valuenow", part);
  bar.style.setProperty("--part", `${part}%`);
  const lost = index === 1;
  if ($("lost").hidden === !lost) return;
  $("lost").hidden = !lost;
  $("stage").classList.toggle("warns", lost);
}

// -- what is shown around the frame

function meet(hello) {
  world = hello;
  hands.actions = hello.actions;
  $("world").textContent = playing || hello.world;
  document.title = `${playing || hello.world} · dreamloom`;
  $("mode").hidden = !hello.real;
  const [height, width] = hello.shape;
  $("stage").style.setProperty("--w", width);
  $("stage").style.setProperty("--h", height);
  $("actions").replaceChildren(...hello.actions.map(actionButton));
  $("actions").classList.toggle("many", hello.actions.length > 8);
  $("gallery").replaceChildren(...Array.from({ length: hello.prompts }, (_, index) => promptButton(index)));
  choose(0);
  freshPalette();
  applySettings(hello);
}

function actionButton(action, index, actions) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "action";
  const key = document.createElement("kbd"), name = document.createElement("b"), thumb = document.createElement("canvas");
  key.textContent = keyLabel(action, index, actions);
  name.textContent = action.name;
  thumb.setAttribute("aria-hidden", "true");
  button.append(key, name, thumb);
  const spoken = action.keys.map((one) => (one === " " ? "space" : one.toLowerCase().replace(/^arrow(.*)/, "$1 arrow"))).concat(index < 9 ? [index + 1] : []);
  button.setAttribute("aria-label", `${action.name}, key ${spoken.join(" or ") || "none"}`);
  const held = `button ${index}`;
  button.onpointerdown = (event) => {
    if (event.button) return;
    button.setPointerCapture(event.pointerId);
    hands.press(held, event.timeStamp);
  };
  button.onpointerup = button.onlostpointercapture = button.onblur = (event) => hands.release(held, event.timeStamp);
  button.oncontextmenu = (event) => event.preventDefault();
  button.onkeydown = (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    if (!event.repeat) hands.press(held, event.timeStamp);
  };
  button.onkeyup = (event) => {
    if (event.key === "Enter" || event.key === " ") hands.release(held, event.timeStamp);
  };
  return button;
}

function promptButton(index) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(document.createElement("canvas"));
  button.setAttribute("aria-label", `Start from picture ${index + 1}`);
  button.setAttribute("aria-pressed", index === chosen);
  button.onclick = () => {
    choose(index);
    send({ type: "start", prompt: index });
  };
  return button;
}

function choose(index) {
  chosen = index;
  [...$("gallery").children].forEach((button, i) => button.setAttribute("aria-pressed", i === index));
}

function showStatus() {
  $("pause").setAttribute("aria-pressed", status.paused);
  $("pause").lastChild.textContent = status.paused ? "play" : "pause";
  $("dream").setAttribute("aria-pressed", !status.real);
  $("real").setAttribute("aria-pressed", status.real);
  $("record").setAttribute("aria-pressed", status.recording);
  $("actions").classList.toggle("stale", status.real);
  $("badge").hidden = !status.paused && !status.real;
  $("badge").textContent = [status.real ? "real game" : "", status.paused ? "paused" : ""].filter(Boolean).join(" · ");
  if (status.recording && !status.recorded) recordedFrom = drawn?.sequence ?? 0;
  showRecorded();
  $("downloads").hidden = status.recording || !status.recorded;
  if (!$("downloads").hidden) {
    const names = { mp4: "film", gif: "gif", hdf5: "dataset" };
    $("downloads").replaceChildren("save", ...world.downloads.map((kind) => {
      const link = document.createElement("a");
      link.href = `/recording/${world.key}/${kind}`;
      link.download = "";
      link.textContent = names[kind];
      return link;
    }));
  }
}

function showRecorded() {
  $("record").lastChild.textContent = status.recording ? `stop ${Math.max(0, (drawn?.sequence ?? 0) - recordedFrom)}` : "record";
}

function curtain(why, again) {
  $("why").textContent = why;
  $("again").hidden = !again;
  $("curtain").classList.remove("up");
  if (again) $("again").focus();
}

let toastTimer;
function toast(text) {
  $("toast").textContent = text;
  $("toast").classList.add("on");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => $("toast").classList.remove("on"), Math.max(4000, 70 * text.length));
}

setInterval(() => {
  const now = performance.now();
  while (shownAt.length && shownAt[0] < now - 1500) shownAt.shift();
  const span = shownAt.length > 2 ? shownAt.at(-1) - shownAt[0] : 0;
  $("fps").textContent = span ? Math.round((1000 * (shownAt.length - 1)) / span) : "–";
  if (!waits.length) return;
  const sorted = [...waits].sort((a, b) => a - b);
  const at = (part) => Math.round(sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))]);
  $("latency").textContent = `${at(0.5)} / ${at(0.95)}`;
}, 250);

// -- hands

const hands = new Hands((action, time) => {
  [...$("actions").children].forEach((button, index) => button.classList.toggle("on", index === action));
  if (action === null) return send({ type: "release" });
  asked.set(nextId, time);
  send({ type: "hold", action: hands.actions[action].action, id: nextId++ });
});

function singleStep() {
  if (!status.paused) send({ type: "pause", on: true });
  send({ type: "step", id: nextId++ });
}

const SHORTCUTS = {
  p: () => $("pause").click(), n: singleStep, r: () => $("reset").click(), c: () => $("record").click(),
  k: () => $("draw").click(), f: () => $("full").click(), g: () => $("choose-world").click(), t: () => !$("mode").hidden && setMode(!status.real),
};

function setMode(real) {
  send({ type: "mode", real });
}

addEventListener("keydown", (event) => {
  if (event.target.closest("input, dialog")) return;
  const pressed = event.key === " " && event.target.closest("button, summary, .button"); // it is the button's own key
  const key = pressed ? null : heldKey(event, hands.actions);
  if (key) {
    event.preventDefault();
    if (!event.repeat) hands.press(key, event.timeStamp);
  } else if (!event.repeat && !event.ctrlKey && !event.metaKey && !event.altKey) SHORTCUTS[event.key.toLowerCase()]?.();
});
addEventListener("keyup", (event) => {
  const key = heldKey({ key: event.key }, hands.actions);
  if (key) hands.release(key, event.timeStamp);
});
addEventListener("blur", () => hands.releaseAll());
document.addEventListener("visibilitychange", () => document.hidden && hands.releaseAll());

$("pause").onclick = () => send({ type: "pause", on: !status.paused });
$("step").onclick = singleStep;
$("reset").onclick = () => send({ type: "reset" });
$("record").onclick = () => send({ type: "record", on: !status.recording });
$("dream").onclick = () => setMode(false);
$("real").onclick = () => setMode(true);
$("lost").onclick = () => $("reset").click();
$("again").onclick = connect;

const applySettings = wireSettings(send, toast);
$("advanced").ontoggle = () => $("advanced").open && $("advanced").scrollIntoView({ block: "nearest" });

// -- full screen: of the page where the browser can, else of its window

$("full").onclick = async () => {
  const on = !document.body.classList.contains("full");
  showFull(on);
  if (on) await document.documentElement.requestFullscreen?.().catch(() => {});
  else if (document.fullscreenElement) await document.exitFullscreen();
};

function showFull(on) {
  document.body.classList.toggle("full", on);
  $("full").setAttribute("aria-pressed", on);
}
document.addEventListener("fullscreenchange", () => { if (!document.fullscreenElement) showFull(false); });
addEventListener("keydown", ({ key }) => { if (key === "Escape") showFull(false); });

// -- pictures of the player's own

const OWN = "your picture is now part of the game: the world redraws it in its own way as you play";

async function playFrom(blob, told = OWN) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    return toast("that is no picture this browser can read");
  }
  const scale = Math.min(1, 512 / Math.min(bitmap.width, bitmap.height));
  const small = document.createElement("canvas");
  [small.width, small.height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const context = small.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, small.width, small.height);
  small.toBlob((png) => {
    choose(-1);
    if (socket?.readyState === WebSocket.OPEN) socket.send(png);
    toast(told);
  }, "image/png");
}

$("file").onchange = ({ target }) => {
  if (target.files[0]) playFrom(target.files[0]);
  target.value = "";
};
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) playFrom(file);
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").hidden = false;
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  const [file] = event.dataTransfer.files;
  if (file) playFrom(file);
});

const freshPalette = wireSketch(frame, (blob) => playFrom(blob, "your drawing is now part of the game"));
wireWorlds(enter);
