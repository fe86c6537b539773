// The gallery of worlds: which there are, and which is played. `?world=` in the address names one.

const $ = (id) => document.getElementById(id);

/** Wires the gallery; `enter` is called with a world's name ("" for the only one). */
export async function wireWorlds(enter) {
  const dialog = $("worlds"), wanted = new URLSearchParams(location.search).get("world");
  const worlds = await (await fetch("worlds")).json();
  let current = null;
  $("choose-world").hidden = worlds.length < 2;
  $("shelf").replaceChildren(...worlds.map(card));

  function card({ name, cover }, index) {
    const button = document.createElement("button"), title = document.createElement("b");
    button.type = "button";
    const picture = cover ? document.createElement("img") : document.createElement("span");
    if (cover) Object.assign(picture, { src: `cover/${index}`, alt: "" });
    title.textContent = name;
    button.append(picture, title);
    button.setAttribute("aria-keyshortcuts", index < 9 ? String(index + 1) : "");
    button.onclick = () => choose(name);
    return button;
  }

  function choose(name) {
    dialog.close();
    if (name === current) return;
    current = name;
    history.replaceState(null, "", `?world=${encodeURIComponent(name)}`);
    enter(name);
  }

  function open() {
    if (worlds.length < 2 || dialog.open) return;
    [...$("shelf").children].forEach((one, i) => one.setAttribute("aria-pressed", worlds[i].name === current));
    dialog.showModal();
    ($("shelf").querySelector("[aria-pressed=true]") ?? $("shelf").firstChild).focus();
  }

  dialog.onkeydown = (event) => {
    event.stopPropagation();
    const cards = [...$("shelf").children], at = cards.indexOf(document.activeElement);
    const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (move) {
      event.preventDefault();
      cards[(at + move + cards.length) % cards.length].focus();
    } else if (/^[1-9]$/.test(event.key)) cards[event.key - 1]?.click();
  };
  dialog.oncancel = () => { if (current === null) choose(worlds[0].name); }; // Escape: the first one
  $("choose-world").onclick = open;

  if (worlds.some(({ name }) => name === wanted)) choose(wanted);
  else if (worlds.length > 1) open();
  else enter("");
  return open;
}
