// The sketch pad: a canvas of the world's own size, so that what is drawn is what the world sees.

const BASIC = {
  black: "#0b0d12", white: "#ffffff", grey: "#8a8f99", brown: "#5b3a29", ochre: "#c98a3b",
  yellow: "#f5d547", red: "#d84a4a", green: "#3f9d57", blue: "#3b6fd8", "sky blue": "#87ceeb",
};
const $ = (id) => document.getElementById(id);

/** Wires the dialog; `frame` is the canvas that shows the world, `play` takes a Blob. Returns what to call when the world changes. */
export function wireSketch(frame, play) {
  const dialog = $("sketch"), paper = $("paper"), brush = $("brush"), palette = $("palette");
  const ink = paper.getContext("2d", { willReadFrequently: true });
  let colour = BASIC.black, last = null, past = [];
  const cursor = { x: 0, y: 0 };

  function open() {
    if (paper.width !== frame.width || paper.height !== frame.height || !past.length) {
      [paper.width, paper.height] = [frame.width, frame.height];
      copy();
    }
    Object.assign(cursor, { x: paper.width >> 1, y: paper.height >> 1 });
    if (!palette.children.length) mix();
    dialog.showModal();
    paper.focus();
  }

  /**
   * The world's own commonest colours first: a sketch in them is closer to what the world knows. They are those of all its
   * starts, so that they stay in their places whatever is being played.
   */
  function mix() {
    const bins = new Map(); // coarse colour -> [pixels, red, green, blue], sums
    for (const canvas of $("gallery").childElementCount ? $("gallery").querySelectorAll("canvas") : [frame]) {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      for (let i = 0; i < data.length; i += 4) {
        if (!data[i + 3]) continue; // not painted yet
        const key = ((data[i] >> 5) << 6) | ((data[i + 1] >> 5) << 3) | (data[i + 2] >> 5);
        if (!bins.has(key)) bins.set(key, [0, 0, 0, 0]);
        const bin = bins.get(key);
        bin[0]++;
        for (let c = 0; c < 3; c++) bin[c + 1] += data[i + c];
      }
    }
    const own = [];
    for (const [count, ...sums] of [...bins.values()].sort((a, b) => b[0] - a[0])) {
      const colour = sums.map((sum) => Math.round(sum / count));
      if (own.length < 10 && own.every((other) => Math.hypot(...other.map((v, c) => v - colour[c])) > 40)) own.push(colour);
    }
    const named = own.map((colour, i) => [`the world's colour ${i + 1}`, `rgb(${colour.join(", ")})`]);
    palette.replaceChildren(...[...named, ...Object.entries(BASIC)].map(swatch));
    palette.children[Math.min(1, palette.children.length - 1)].click();
  }

  function swatch([name, value]) {
    const button = document.createElement("button");
    button.type = "button";
    button.style.setProperty("--colour", value);
    button.setAttribute("aria-label", name);
    button.onclick = () => {
      colour = value;
      for (const other of palette.children) other.setAttribute("aria-pressed", other === button);
    };
    return button;
  }

  function keep() {
    past.push(ink.getImageData(0, 0, paper.width, paper.height));
    past = past.slice(-40);
  }

  function copy() {
    keep();
    ink.drawImage(frame, 0, 0);
  }

  function dab(x, y) {
    const size = Number(brush.value), steps = last ? Math.max(Math.abs(x - last.x), Math.abs(y - last.y), 1) : 1;
    const from = last ?? { x, y };
    ink.fillStyle = colour;
    for (let i = 1; i <= steps; i++) {
      const [px, py] = [from.x + ((x - from.x) * i) / steps, from.y + ((y - from.y) * i) / steps];
      ink.fillRect(Math.round(px - size / 2), Math.round(py - size / 2), size, size);
    }
    last = { x, y };
  }

  function at(event) {
    const box = paper.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * paper.width, ((event.clientY - box.top) / box.height) * paper.height];
  }

  paper.onpointerdown = (event) => {
    paper.setPointerCapture(event.pointerId);
    keep();
    last = null;
    dab(...at(event));
  };
  paper.onpointermove = (event) => {
    if (!(event.buttons & 1)) return;
    for (const one of event.getCoalescedEvents?.() ?? [event]) dab(...at(one));
  };
  paper.onkeydown = (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    const pace = event.shiftKey ? 8 : 1;
    if (move) {
      cursor.x = Math.max(0, Math.min(paper.width - 1, cursor.x + pace * move[0]));
      cursor.y = Math.max(0, Math.min(paper.height - 1, cursor.y + pace * move[1]));
    }
    if (event.key === " " && !event.repeat) keep();
    last = null;
    if (event.key === " " || painting) dab(cursor.x, cursor.y);
    painting ||= event.key === " ";
    show();
  };
  paper.onkeyup = (event) => { if (event.key === " ") painting = false; };
  let painting = false;

  /** Where the keyboard's brush is, told to whoever cannot see it, and shown as a marker to whoever can. */
  function show() {
    paper.setAttribute("aria-label", `Canvas, brush at ${cursor.x}, ${cursor.y}. Arrow keys move it, space paints`);
    const marker = $("cursor"), box = paper.getBoundingClientRect();
    marker.hidden = false;
    marker.style.setProperty("--x", `${((cursor.x + 0.5) / paper.width) * box.width}px`);
    marker.style.setProperty("--y", `${((cursor.y + 0.5) / paper.height) * box.height}px`);
    marker.style.setProperty("--size", `${(Number(brush.value) / paper.width) * box.width}px`);
  }
  paper.onblur = () => { $("cursor").hidden = true; };

  const undo = () => { if (past.length) ink.putImageData(past.pop(), 0, 0); };
  dialog.onkeydown = (event) => {
    event.stopPropagation();
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
  };
  $("undo").onclick = undo;
  $("copy").onclick = copy;
  $("fill").onclick = () => { keep(); ink.fillStyle = colour; ink.fillRect(0, 0, paper.width, paper.height); };
  $("cancel").onclick = () => dialog.close();
  $("use").onclick = () => paper.toBlob((blob) => { dialog.close(); play(blob); }, "image/png");
  $("draw").onclick = open;
  return () => { // another world has other colours
    palette.replaceChildren();
    past = [];
  };
}
