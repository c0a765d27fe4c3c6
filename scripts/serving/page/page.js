// One picture, and the answers to what is asked about it.

import { colour, caption, draw } from "./drawing.js";
import * as server from "./server.js";

const find = (id) => document.getElementById(id);
const frame = find("frame");
const canvas = find("canvas");

// What each task asks for in the text field, and the prompt that it makes.
const TASKS = {
  caption: { send: "Describe", hint: "Describes the picture.", prompt: () => `caption ${language()}` },
  ask: {
    send: "Ask", text: "Question", hint: "Such as: what is on the table?",
    prompt: (text) => `answer ${language()} ${text}`,
  },
  detect: {
    send: "Find", text: "What to find", hint: "Finds boxes, of several labels too: cat, dog",
    prompt: (text) => `detect ${split(text).join(" ; ")}`,
  },
  segment: {
    send: "Outline", text: "What to outline", hint: "Finds boxes and masks, of several labels too: cat, dog",
    prompt: (text) => `segment ${split(text).join(" ; ")}`,
  },
  read: { send: "Read", hint: "Reads what is written in the picture.", prompt: () => "ocr" },
  prompt: { send: "Send", text: "Prompt", hint: "Sent as it is, for a model with prompts of its own.", prompt: (text) => text },
};

// {name, url, bitmap, answers: [{prompt, model, text, objects, shown, ...}]};
// an answer has objects if its prompt asks to detect or segment.
let picture = null;

const split = (text) => text.split(/[,;]/).map((label) => label.trim()).filter(Boolean);
const language = () => find("language").value.trim() || "en";
const task = () => document.querySelector("[name=task]:checked").value;
const number = (id) => (find(id).value === "" ? null : Number(find(id).value));
const least = () => number("threshold");
const visible = (answer) => (answer.objects ?? []).filter((item) => item.score >= least());
const drawn = () => picture.answers.filter((answer) => answer.shown).flatMap(visible);

// What the page shows elsewhere, too, is said only to those who do not see it.
function say(text, look = "") {
  find("status").textContent = text;
  find("status").className = look;
}

// The largest file and picture that are sent as they are.
const BYTES = 12e6;
const PIXELS = 20e6;

async function take(file) {
  if (!file) return;
  const name = file.name || "picture";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    say(`${name} is no picture that this browser can show.`, "error");
    return;
  }
  let note = `${name}, ${bitmap.width} × ${bitmap.height} pixels`;
  if (file.size > BYTES || bitmap.width * bitmap.height > PIXELS) {
    const factor = Math.min(1, 4096 / Math.max(bitmap.width, bitmap.height));
    file = await toBlob(onCanvas(bitmap, factor), "image/jpeg");
    bitmap = await createImageBitmap(file);
    note += `, sent as ${bitmap.width} × ${bitmap.height}`;
  }
  picture?.answers.forEach((answer) => answer.abort?.abort());
  picture?.bitmap.close();
  const url = await new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(file);
  });
  picture = { name, url, bitmap, answers: [] };
  find("answers").replaceChildren();
  for (const id of ["results", "threshold-label", "empty"]) find(id).hidden = true;
  canvas.hidden = false;
  frame.classList.add("full");
  say(note);
  redraw();
}

function redraw() {
  if (!picture) return;
  const { bitmap, name } = picture;
  const ratio = window.devicePixelRatio;
  const most = Math.max(window.innerHeight * 0.7, 240);
  const scale = Math.min(frame.clientWidth / bitmap.width, most / bitmap.height);
  const width = Math.max(Math.floor(bitmap.width * scale), 1);
  const height = Math.max(Math.floor(bitmap.height * scale), 1);
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  const objects = drawn();
  draw(canvas, bitmap, objects, ratio);
  const boxes = objects.map(caption).join(", ");
  canvas.setAttribute("aria-label", boxes ? `${name} with ${boxes}` : name);
}

function chooseTask() {
  const { send, text, hint } = TASKS[task()];
  find("send").textContent = send;
  find("hint").textContent = hint;
  find("text").hidden = !text;
  find("text").required = Boolean(text);
  find("text-label").textContent = text ?? "Text";
}

// A new answer is shown alone on the picture.
function add(answer) {
  const item = find("answer").content.firstElementChild.cloneNode(true);
  item.querySelector("h3").textContent = answer.prompt;
  item.querySelector(".model").textContent = answer.model;
  item.querySelector(".stop").onclick = () => answer.abort.abort();
  item.querySelector(".shown input").onchange = (event) => {
    answer.shown = event.target.checked;
    redraw();
  };
  find("answers").prepend(item);
  item.scrollIntoView({ block: "nearest" });
  picture.answers.push(answer);
  answer.item = item;
  return item;
}

async function ask() {
  const about = picture;
  if (!about) {
    say("Choose a picture first.", "error");
    return;
  }
  const answer = {
    prompt: TASKS[task()].prompt(find("text").value.trim()),
    model: find("model").value,
    settings: { max_tokens: number("max_tokens") },
    text: "",
    shown: false,
    abort: new AbortController(),
  };
  const item = add(answer);
  item.classList.add("busy");
  item.setAttribute("aria-busy", "true");
  say("Asked …", "unseen");
  try {
    const [, finds, text] = /^(detect|segment) (.*)$/.exec(answer.prompt) ?? [];
    if (finds) await locate(answer, finds, split(text));
    else await stream(answer);
    if (about === picture) say(summary(answer), "unseen");
  } catch (error) {
    const stopped = error.name === "AbortError";
    item.classList.toggle("failed", !stopped);
    if (!stopped) answer.error = error.message;
    const message = stopped ? "Stopped." : error.message;
    item.querySelector(".text").textContent = `${answer.text}\n${message}`.trim();
    if (about === picture) say(message, "unseen");
    if (error.status === 401) askForToken("The server refused this token.");
  }
  item.classList.remove("busy");
  item.removeAttribute("aria-busy");
  item.querySelector(".stop").hidden = true;
  if (about === picture) find("results").hidden = false;
}

async function stream(answer) {
  const { model, settings } = answer;
  const text = answer.item.querySelector(".text");
  for (const name of ["temperature", "top_p", "seed"]) settings[name] = number(name);
  const content = [
    { type: "image_url", image_url: { url: picture.url } },
    { type: "text", text: answer.prompt },
  ];
  const body = { model, ...settings, messages: [{ role: "user", content }] };
  for await (const piece of server.pieces(body, answer.abort.signal)) {
    answer.text += piece.text;
    text.textContent = answer.text;
    if (piece.reason === "length") text.append(" … (as many tokens as allowed)");
  }
}

async function locate(answer, task, labels) {
  const { item, model, settings, abort } = answer;
  const { answers, url } = picture;
  const body = { model, ...settings, image: url, labels };
  const { text, objects, complete, malformed } = await server.objects(task, body, abort.signal);
  Object.assign(answer, { text, objects, complete, malformed });
  answers.forEach((other) => {
    other.shown = other === answer;
    other.item.querySelector(".shown input").checked = other.shown;
  });
  item.querySelector(".shown").hidden = !objects.length;
  item.querySelector(".raw").hidden = !text;
  item.querySelector(".raw code").textContent = text;
  find("threshold-label").hidden = false;
  list(answer);
  redraw();
}

function list(answer) {
  const { item, objects } = answer;
  const shown = visible(answer);
  item.querySelector("table").hidden = !shown.length;
  item.querySelector("tbody").replaceChildren(...shown.map((object) => {
    const row = document.createElement("tr");
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = colour(object.label);
    const [label, score, box] = [0, 1, 2].map(() => row.insertCell());
    label.append(swatch, object.label);
    score.textContent = object.score.toFixed(2);
    box.textContent = object.box.map(Math.round).join(", ");
    return row;
  }));
  item.querySelector(".text").textContent = summary(answer);
}

function summary(answer) {
  if (!answer.objects) return "Answered.";
  const total = answer.objects.length;
  const below = total - visible(answer).length;
  let said = total ? `${total} found` : "Nothing found";
  if (below) said += `, ${below} of them below the least score`;
  if (!answer.complete) said += "; the answer has as many tokens as allowed";
  if (answer.malformed) said += `; not read: ${answer.malformed}`;
  return `${said}.`;
}

function onCanvas(bitmap, factor) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * factor);
  canvas.height = Math.round(bitmap.height * factor);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

function toBlob(canvas, type) {
  return new Promise((resolve) => canvas.toBlob(resolve, type, 0.92));
}

function save(blob, suffix) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = picture.name.replace(/\.\w+$/, "") + suffix;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function saveJson() {
  const { name, bitmap, answers } = picture;
  const kept = answers.map(({ prompt, model, settings, text, objects, error }) => (
    { prompt, model, settings, text, objects, error }));
  const content = { image: name, height: bitmap.height, width: bitmap.width, answers: kept };
  save(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }), ".json");
}

// At the picture's own size, or enlarged until letters have room.
async function savePicture() {
  const { bitmap } = picture;
  const longer = Math.max(bitmap.width, bitmap.height);
  const factor = Math.max(1, Math.ceil(480 / longer));
  const canvas = onCanvas(bitmap, factor);
  draw(canvas, bitmap, drawn(), Math.max(1, (longer * factor) / 900));
  save(await toBlob(canvas, "image/png"), "-answers.png");
}

let camera = null;

async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    find("photo").click(); // phones take a picture; others choose a file
    return;
  }
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say(`The camera cannot be used: ${error.message}.`, "error");
    return;
  }
  find("shoot").disabled = true; // until there is a picture
  find("video").srcObject = camera;
  find("camera-dialog").showModal();
}

async function shoot() {
  const still = onCanvas(await createImageBitmap(find("video")), 1);
  find("camera-dialog").close();
  take(new File([await toBlob(still, "image/jpeg")], "camera.jpg"));
}

function askForToken(hint) {
  find("token-hint").textContent = hint;
  if (!find("token-dialog").open) find("token-dialog").showModal();
}

async function connect() {
  try {
    const names = await server.models();
    find("model").replaceChildren(...names.map((name) => new Option(name)));
    find("token-dialog").close();
  } catch (error) {
    if (error.status !== 401) say(error.message, "error");
    else if (find("token").value) askForToken("The server refused this token.");
    else askForToken("It is the one that the server was started with.");
  }
}

find("tasks").onchange = chooseTask;
find("form").onsubmit = (event) => {
  event.preventDefault();
  // The next question replaces this one; on a phone the keyboard goes.
  const touched = matchMedia("(pointer: coarse)").matches;
  touched ? find("text").blur() : find("text").select();
  ask();
};
find("threshold").oninput = () => {
  find("least").textContent = least().toFixed(2);
  picture.answers.filter((answer) => answer.objects).forEach(list);
  redraw();
};
find("save-picture").onclick = savePicture;
find("save-json").onclick = saveJson;
find("choose").onclick = find("empty").onclick = () => find("file").click();
for (const id of ["file", "photo"]) {
  find(id).onchange = ({ target }) => {
    take(target.files[0]);
    target.value = "";
  };
}
find("camera").onclick = openCamera;
find("video").onloadeddata = () => (find("shoot").disabled = false);
find("shoot").onclick = shoot;
find("leave-camera").onclick = () => find("camera-dialog").close();
find("camera-dialog").onclose = () => camera.getTracks().forEach((track) => track.stop());
find("token-form").onsubmit = (event) => {
  event.preventDefault();
  server.setToken(find("token").value);
  connect();
};
document.onpaste = ({ clipboardData }) => take(clipboardData.files[0]);
document.ondragover = (event) => {
  event.preventDefault();
  frame.classList.add("over");
};
document.ondragleave = () => frame.classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  frame.classList.remove("over");
  take(event.dataTransfer.files[0]);
};
new ResizeObserver(redraw).observe(frame);
chooseTask();
connect();
