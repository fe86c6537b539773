// Pictures as they cross the socket: a header of 20 bytes and raw RGB rows (dreamloom/play/messages.py).

export const FRAME = 1, THUMBNAIL = 2, PROMPT = 3;
const HEADER = 20, UNKNOWN = 255;

/** A binary message; `doubt` is from 0 to 1, or null where the world does not tell. */
export function unpack(buffer) {
  const view = new DataView(buffer), doubt = view.getUint8(1);
  return {
    kind: view.getUint8(0), doubt: doubt === UNKNOWN ? null : doubt / 254, index: view.getUint16(2, true),
    width: view.getUint16(4, true), height: view.getUint16(6, true), sequence: view.getUint32(8, true),
    stamp: view.getUint32(12, true), rgb: new Uint8Array(buffer, HEADER),
  };
}

export function paint(canvas, { width, height, rgb }) {
  if (!canvas) return;
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height), out = image.data;
  for (let from = 0, to = 0; from < rgb.length; from += 3, to += 4) {
    out[to] = rgb[from];
    out[to + 1] = rgb[from + 1];
    out[to + 2] = rgb[from + 2];
    out[to + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
