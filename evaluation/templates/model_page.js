"use strict";
// The page of a model: pictures come in, labels and scores come out, and the threshold moves. What opens the model and
// predicts is `backend`, which the script after this one makes before it calls begin():
//   open()             -> {classes: [{name, threshold}], threshold, min_labels, max_labels, about}, or null while the
//                         page waits for something, which then calls begin() again
//   predict(file)      -> {probabilities, novelty, abstains}; the last two only where they are known
//   map(file, index)   -> a Blob, the picture with what the model looked at for that class; model.maps says whether
//   atOnce             how many pictures it takes at a time; the rest wait here
let backend = null;

const SHOWN = 8;     // scores of a picture, until a person asks for all
const NOVEL = {{ novel }};   // novelty from which on a picture is said to be unlike the training photographs

const find = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

let model = null;       // what the backend opened
let threshold = null;   // of all classes; null: each class's own
const pictures = new Set();
const waiting = [];
let running = 0;

const limits = () => model.classes.map((one) => threshold === null ? one.threshold : threshold);
const rank = (probabilities) =>
  probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a] || a - b);

// as metrics.predict decides: by threshold, then filled up or cut by probability, of equal ones the first
function decide(probabilities, used) {
  const order = rank(probabilities);
  let chosen = order.filter((index) => probabilities[index] >= used[index]);
  if (chosen.length < model.min_labels) {
    const others = order.filter((index) => !chosen.includes(index));
    chosen = [...chosen, ...others.slice(0, model.min_labels - chosen.length)];
  }
  return new Set(model.max_labels ? chosen.slice(0, model.max_labels) : chosen);
}

// ---- a picture ----

function show(picture) {
  const { labels, scores, more, probabilities } = picture;
  if (!probabilities || !model) return;
  picture.unlike.hidden = !(picture.novelty >= NOVEL);   // undefined, where it is not known, is not
  picture.doubt.hidden = !picture.abstains;
  const used = limits(), chosen = decide(probabilities, used), order = rank(probabilities);
  labels.replaceChildren(...order.filter((index) => chosen.has(index)).map((index) =>
    make("li", { textContent: model.classes[index].name })));
  if (!chosen.size) labels.append(make("li", { className: "none", textContent: "no label" }));
  const rows = picture.all ? order : order.filter((index, place) => place < SHOWN || chosen.has(index));
  scores.replaceChildren(...rows.map((index) => showScore(picture, index, used[index], chosen.has(index))));
  more.hidden = probabilities.length <= SHOWN;
  more.textContent = picture.all ? "Fewer scores" : `All ${probabilities.length} scores`;
}

function showScore(picture, index, limit, isLabel) {
  const { name } = model.classes[index], probability = picture.probabilities[index];
  const fill = make("div", { className: "fill" }), mark = make("div", { className: "mark" });
  fill.style.width = `${100 * probability}%`;
  mark.style.left = `calc(${100 * limit}% - 1px)`;
  mark.title = `threshold ${limit.toFixed(2)}`;
  const row = make("tr", { className: isLabel ? "is-label" : "" },
    make("th", { scope: "row", textContent: name }),
    make("td", { className: "bar" }, make("div", { className: "track" }, fill, mark)),
    make("td", { textContent: probability.toFixed(3) }));
  if (model.maps) {
    const where = make("button", { type: "button", textContent: "Where?", ariaLabel: `Where is ${name}?` });
    where.ariaPressed = String(picture.where === index);
    where.dataset.index = index;
    where.onclick = () => showWhere(picture, index);
    row.append(make("td", {}, where));
  }
  return row;
}

// the map of a class in place of the picture; asked for once more, the picture comes back
async function showWhere(picture, index) {
  const before = picture.where;
  picture.error.hidden = true;
  picture.where = before === index ? null : index;
  try {
    const map = picture.where === null ? null : await backend.map(picture.file, index);
    if (picture.where !== (before === index ? null : index) || !pictures.has(picture)) return;   // asked for another
    if (picture.map) URL.revokeObjectURL(picture.map);
    picture.map = map && URL.createObjectURL(map);
    picture.image.src = picture.map || picture.url;
    picture.image.alt = map ? `What the model looked at for ${model.classes[index].name}` : "";
  } catch (error) {
    picture.where = before ?? null;
    complain(picture, error);
  }
  const hadFocus = picture.scores.contains(document.activeElement);
  show(picture);
  if (hadFocus) picture.scores.querySelector(`[data-index="${index}"]`)?.focus();
}

function complain(picture, error) {
  picture.error.textContent = error.message;
  picture.error.hidden = false;
}

function add(file) {
  const url = URL.createObjectURL(file);
  const name = file.name || "pasted picture";
  const picture = { file, url, all: false, where: null };
  picture.labels = make("ul", { className: "labels", ariaLabel: `Labels of ${name}` });
  picture.scores = make("tbody");
  picture.more = make("button", { type: "button", className: "more", hidden: true });
  picture.more.onclick = () => { picture.all = !picture.all; show(picture); };
  picture.error = make("p", { className: "error", hidden: true });
  picture.unlike = make("p", { className: "unlike warning", hidden: true },
    "Unlike the training photographs: ", make("span", { textContent: "farther from them than {{ (100 * novel) | round(1) | int }} % of these are from each other. Its scores may mean little." }));
  picture.doubt = make("p", { className: "doubt", hidden: true, textContent: "The model is not sure: look for yourself." });
  picture.image = make("img", { src: url, alt: "", onerror: (event) => event.target.remove() });
  const remove = make("button", { type: "button", textContent: "Remove", ariaLabel: `Remove ${name}` });
  picture.card = make("article", { className: "card", ariaBusy: "true" },
    picture.image,
    make("div", { className: "inside" },
      make("div", { className: "title" }, make("h2", { textContent: name }), remove), picture.doubt,
      picture.labels, picture.unlike, make("table", { className: "scores" }, make("caption", { className: "hidden", textContent: `Scores of ${name}` }), picture.scores),
      picture.more, picture.error));
  picture.labels.append(make("li", { className: "none", textContent: "waiting …" }));
  remove.onclick = () => { drop(picture); find("files").focus(); };
  pictures.add(picture);
  find("pictures").prepend(picture.card);
  find("clear").disabled = false;
  return picture;
}

function drop(picture) {
  pictures.delete(picture);
  picture.card.remove();
  URL.revokeObjectURL(picture.url);
  if (picture.map) URL.revokeObjectURL(picture.map);
  find("clear").disabled = !pictures.size;
}

function work() {
  while (model && waiting.length && running < backend.atOnce) {
    const picture = waiting.shift();
    if (!pictures.has(picture)) continue;   // removed meanwhile
    running += 1;
    backend.predict(picture.file)
      .then((answer) => { Object.assign(picture, answer); show(picture); })
      .catch((error) => { picture.labels.remove(); complain(picture, error); })
      .finally(() => {
        picture.card.ariaBusy = "false";
        running -= 1;
        const left = waiting.length + running;
        find("status").textContent = left ? `${left} pictures left` : "all pictures are done";
        work();
      });
  }
}

function take(files) {
  waiting.push(...[...files].reverse().map(add).reverse());   // the first of them comes to stand first
  work();
}

find("files").onchange = (event) => { take(event.target.files); event.target.value = ""; };
addEventListener("paste", (event) => take(event.clipboardData.files));
addEventListener("dragover", (event) => { event.preventDefault(); find("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) find("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();   // anywhere on the page, which the browser would leave for the picture
  find("drop").classList.remove("over");
  take(event.dataTransfer.files);
});

// ---- the camera: a phone's own program for it, elsewhere a window with what the camera sees ----

let shots = 0;

async function offerCamera() {
  if (matchMedia("(pointer: coarse)").matches) {
    find("capture").onchange = (event) => { take(event.target.files); event.target.value = ""; };
    find("camera").onclick = () => find("capture").click();
    find("camera").hidden = false;
  } else if (navigator.mediaDevices) {   // there is none where the page came over plain http from another machine
    const devices = await navigator.mediaDevices.enumerateDevices().catch(() => []);   // a frame may be forbidden to
    find("camera").onclick = () => openCamera().catch((error) => fail(`the camera does not open: ${error.message}`));
    find("camera").hidden = !devices.some((device) => device.kind === "videoinput");
  }
}

async function openCamera() {
  const video = find("viewfinder").querySelector("video");
  video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } } });
  find("viewfinder").onclose = () => video.srcObject.getTracks().forEach((track) => track.stop());
  find("shoot").onclick = () => {
    const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => take([new File([blob], `camera ${++shots}.jpg`, { type: "image/jpeg" })]), "image/jpeg", 0.95);
    find("viewfinder").close();
  };
  find("viewfinder").showModal();
  fail("");
}

// ---- the threshold ----

function showThreshold() {
  const own = model.classes.map((one) => one.threshold);
  const lowest = Math.min(...own), highest = Math.max(...own);
  const span = lowest === highest ? lowest.toFixed(2) : `${lowest.toFixed(2)} to ${highest.toFixed(2)}`;
  find("threshold-text").textContent = threshold === null ? `${span}, the model's` : `${threshold.toFixed(2)} for all classes`;
  find("reset").disabled = threshold === null;
  if (threshold === null) find("threshold").value = model.threshold;
  pictures.forEach(show);
}

find("threshold").oninput = (event) => { threshold = Number(event.target.value); showThreshold(); };
find("reset").onclick = () => { threshold = null; showThreshold(); find("threshold").focus(); };
find("clear").onclick = () => { [...pictures].forEach(drop); find("files").focus(); };

// ---- the model ----

function fail(text) {
  find("failure").textContent = text;
  find("failure").hidden = !text;
}

async function begin() {
  try {
    const opened = await backend.open();
    if (!opened) return;
    model = opened;
  } catch (error) {
    fail(error.message);
    return;
  }
  fail("");
  find("about").textContent = model.about;
  find("threshold").disabled = false;
  find("classes").hidden = false;
  find("classes").querySelector("summary").textContent = `The ${model.classes.length} classes that it knows`;
  find("classes").querySelector("ul").replaceChildren(
    ...model.classes.map(({ name }) => make("li", { textContent: name })));
  showThreshold();
  work();
}

offerCamera();
