// Draws a picture with boxes, masks, labels and scores.

// Bright, so that black letters on them and a dark edge around them are clear
// on any picture, and told apart also by those who do not see all colours.
const COLOURS = [
  "#ffb000", "#4cc9f0", "#ff8fab", "#7ae582", "#c8a2ff",
  "#ffe14d", "#ff8a5c", "#5eead4", "#93b5ff", "#e2e8f0",
];
const INK = "#10141a";
const EDGE = "rgb(16 20 26 / 0.75)";
const OPACITY = 0.5; // of a mask
const coloured = new Map();

// A label keeps its colour for as long as the page is open.
export function colour(label) {
  if (!coloured.has(label)) coloured.set(label, COLOURS[coloured.size % COLOURS.length]);
  return coloured.get(label);
}

export function caption({ label, score }) {
  return `${label} ${score.toFixed(2)}`.trim();
}

// Fills a canvas. Boxes, [y0, x0, y1, x1], are in pixels of the picture; a line
// is 3 units thick.
export function draw(canvas, picture, objects, unit) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  const scale = width / picture.width;
  context.imageSmoothingEnabled = scale < 3; // else its pixels are to be seen
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, width, height);
  context.globalAlpha = OPACITY;
  for (const item of objects.filter((item) => item.mask)) {
    const [image, x, y] = tinted(item);
    context.drawImage(
      image, x * scale, y * scale, image.width * scale, image.height * scale);
  }
  context.globalAlpha = 1;
  // On the middle of pixels: lines are sharp.
  const boxes = objects.map((item) => item.box.map((edge) => Math.floor(edge * scale) + 0.5));
  for (const [style, thickness] of [[EDGE, 5 * unit], [null, 3 * unit]]) {
    context.lineWidth = thickness;
    objects.forEach((item, i) => {
      const [y0, x0, y1, x1] = boxes[i];
      context.strokeStyle = style ?? colour(item.label);
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    });
  }
  write(context, objects, boxes, unit);
}

// The part of a mask in its box as a canvas, and where it lies.
function tinted({ mask, box, label }) {
  const [height, width] = mask.size;
  const [y0, x0] = box.slice(0, 2).map((edge) => Math.max(Math.floor(edge), 0));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(Math.min(Math.ceil(box[3]), width) - x0, 1);
  canvas.height = Math.max(Math.min(Math.ceil(box[2]), height) - y0, 1);
  const context = canvas.getContext("2d");
  context.fillStyle = colour(label);
  context.fillRect(0, 0, canvas.width, canvas.height);
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 3; i < image.data.length; i += 4) image.data[i] = 0;
  let position = 0; // column by column
  runs(mask.counts).forEach((count, i) => {
    const end = position + count;
    for (let at = i % 2 ? position : end; at < end; at += 1) {
      const x = Math.floor(at / height) - x0;
      const y = (at % height) - y0;
      const inside = x >= 0 && y >= 0 && x < image.width && y < image.height;
      if (inside) image.data[4 * (y * image.width + x) + 3] = 255;
    }
    position = end;
  });
  context.putImageData(image, 0, 0);
  return [canvas, x0, y0];
}

// Lengths of runs, outside and inside in turn, of the text that pycocotools
// makes of them: five bits a character, the sixth says that more follow; from
// the fourth run on, the difference to the last but one.
function runs(text) {
  const lengths = [];
  let value = 0;
  let shift = 0;
  for (const character of text) {
    const bits = character.charCodeAt(0) - 48;
    value += (bits & 31) << shift;
    shift += 5;
    if (bits & 32) continue;
    if (bits & 16) value -= 1 << shift;
    if (lengths.length > 2) value += lengths.at(-2);
    lengths.push(value);
    value = shift = 0;
  }
  return lengths;
}

// Writes each label at its box, within the picture, and on no other label.
function write(context, objects, boxes, unit) {
  const { width, height } = context.canvas;
  const pad = 5 * unit;
  const high = 20 * unit;
  context.font = `600 ${13 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const taken = [];
  objects.forEach((item, i) => {
    const text = caption(item);
    const [y0, x0, y1, x1] = boxes[i];
    const wide = Math.min(context.measureText(text).width + 2 * pad, width);
    const spots = [y0 - high, y1, y0, y1 - high].flatMap(
      (y) => [[x0 - unit, y], [x1 - wide + unit, y]]);
    const frames = spots.map(([x, y]) => [
      Math.min(Math.max(x, 0), width - wide), Math.min(Math.max(y, 0), height - high)]);
    const free = ([x, y]) => taken.every(([left, top, w]) =>
      x >= left + w || left >= x + wide || y >= top + high || top >= y + high);
    const [x, y] = frames.find(free) ?? frames[0];
    taken.push([x, y, wide]);
    context.fillStyle = colour(item.label);
    context.fillRect(x, y, wide, high);
    context.fillStyle = INK;
    context.fillText(text, x + pad, y + high / 2, wide - 2 * pad);
  });
}
