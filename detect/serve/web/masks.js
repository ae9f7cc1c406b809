// Masks in COCO's compressed run-length encoding.

/**
 * Returns the lengths of the runs of a mask, of pixels without and with the object in turn.
 *
 * Each number is written in groups of five bits, lowest first, as characters from "0" on; the sixth bit says that
 * another group follows, and the highest bit of the last group is the sign. From the fourth on, a number is the
 * difference from the one two places before.
 */
export function runLengths(text) {
  const lengths = [];
  for (let position = 0; position < text.length; ) {
    let value = 0;
    let shift = 0;
    let group;
    do {
      group = text.charCodeAt(position++) - 48;
      value |= (group & 31) << shift;
      shift += 5;
    } while (group & 32);
    if (group & 16 && shift < 32) value |= -1 << shift;
    if (lengths.length > 2) value += lengths.at(-2);
    lengths.push(value);
  }
  return lengths;
}

/** Mixes a colour, [red, green, blue], into the pixels of a mask; `pixels` is RGBA, row by row. */
export function paint(pixels, { size: [height, width], counts }, colour, opacity) {
  let position = 0;
  runLengths(counts).forEach((length, run) => {
    const end = position + length;
    if (run % 2) {
      for (let i = position; i < end; i++) {
        const start = 4 * ((i % height) * width + Math.floor(i / height));
        for (let channel = 0; channel < 3; channel++) {
          pixels[start + channel] += opacity * (colour[channel] - pixels[start + channel]);
        }
      }
    }
    position = end;
  });
}
