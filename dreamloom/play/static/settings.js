// How frames are drawn. What is out of range is explained and put back; the server never sees it.

const $ = (id) => document.getElementById(id);

/** Wires the form; `send` takes a message, `toast` a text. Returns what is to be called with each world's hello. */
export function wireSettings(send, toast) {
  const form = $("settings"), good = {};
  let fps = 15, changed = false;
  const fields = () => [...form.elements].filter(({ type }) => type === "number");
  for (const field of fields()) good[field.name] = field.value;

  /** What is wrong with a field, or null. */
  function fault({ validity, min, max, labels, step }) {
    if (validity.valid) return null;
    const name = labels[0].firstChild.textContent.trim(), whole = step === "1" ? "whole " : "";
    return `${name} is a ${whole}number from ${Number(min).toLocaleString("en")} to ${Number(max).toLocaleString("en")}`;
  }

  function tell() {
    const number = (name) => (form[name].value === "" ? null : Number(form[name].value));
    changed = true;
    send({
      type: "settings", seed: number("seed") ?? 0, fps: number("fps") ?? fps,
      temperature: number("temperature"), steps: number("steps"), idle: form.idle.checked,
    });
  }

  form.onchange = ({ target }) => {
    const why = fields().includes(target) && fault(target);
    if (why) {
      target.value = good[target.name];
      toast(`${why}: put back to ${target.value || "the world's own"}`);
      return;
    }
    good[target.name] = target.value;
    tell();
  };
  form.onsubmit = (event) => event.preventDefault();

  return (hello) => {
    fps = hello.fps;
    form.fps.placeholder = Math.round(fps);
    form.idle.closest("label").hidden = hello.idle === null;
    if (changed) tell();
    else form.idle.checked = hello.idles;
  };
}
