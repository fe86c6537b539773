// What is held, as an action: arrows by the actions' labels, digits by their order, buttons by pointer or Enter and space.

const ALIASES = { w: "ArrowUp", a: "ArrowLeft", s: "ArrowDown", d: "ArrowRight" };
const GLYPHS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "space" };

/** The keys of an action as they are shown: arrows or a letter where its label speaks of them, else its digit. */
export function keyLabel(action, index, actions) {
  const first = actions.findIndex((other) => other.keys.join() === action.keys.join());
  if (action.keys.length && first === index) return action.keys.map((key) => GLYPHS[key] ?? key.toUpperCase()).join("");
  return index < 9 ? String(index + 1) : "";
}

/** The key that an event is about: an arrow, a digit, a letter that an action is named by, or null. */
export function heldKey(event, actions) {
  if (event.ctrlKey || event.metaKey || event.altKey) return null;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key.startsWith("Arrow") || actions.some(({ keys }) => keys.includes(key))) return key;
  if (ALIASES[key]) return ALIASES[key];
  return /^[1-9]$/.test(key) ? key : null;
}

/** Keeps the order in which keys and buttons went down, and tells which action that makes. */
export class Hands {
  constructor(change) {
    this.actions = [];
    this.down = []; // keys, and "button 3" for an action's button
    this.change = change; // called with (action or null, time)
    this.action = null;
  }

  press(key, time) {
    if (!this.down.includes(key)) this.down.push(key);
    this.settle(time);
  }

  release(key, time) {
    this.down = this.down.filter((other) => other !== key);
    this.settle(time);
  }

  releaseAll() {
    this.down = [];
    this.settle(performance.now());
  }

  settle(time) {
    const action = this.resolve();
    if (action === this.action) return;
    this.action = action;
    this.change(action, time);
  }

  /** The newest button or digit wins; arrows that are held together make the action that takes most of them. */
  resolve() {
    const newest = this.down.at(-1);
    if (newest === undefined) return null;
    if (newest.startsWith("button ")) return Number(newest.slice(7));
    if (/^[1-9]$/.test(newest)) return Number(newest) <= this.actions.length ? Number(newest) - 1 : null;
    const fitting = this.actions
      .map((action, index) => ({ index, keys: action.keys }))
      .filter(({ keys }) => keys.length && keys.every((key) => this.down.includes(key)));
    const worth = ({ keys }) => keys.length + (keys.includes(newest) ? 0.5 : 0);
    return fitting.reduce((best, one) => (!best || worth(one) > worth(best) ? one : best), null)?.index ?? null;
  }
}
