
// ---- the model in this browser: it is fetched once, and then runs in a worker, so that the page stays quick ----

// Everything is fetched by the page and given to the worker, which is made of this function's text: a worker from a
// file would not be bound by the page's Content-Security-Policy, one from text is.
function workInBackground() {
  const MOST_PIXELS = 16e6;   // larger ones are scaled down first: phones have no canvas and no memory for more
  const MOST_THREADS = 4;
  let ort, session;

  async function open({ script, wasm, onnx }) {
    ort = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
    session = await ort.InferenceSession.create(new Uint8Array(onnx), { executionProviders: ["wasm"] });
    return {};
  }

  // Upright RGB (H, W, 3) as dataset/decoding.py gives it: profiles of colours are not applied, and what is transparent
  // becomes white.
  async function decode(file) {
    let bitmap;
    try {
      const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
      bitmap = await createImageBitmap(file, options);
    } catch {
      throw new Error(`cannot read ${file.name || "this picture"}: it is damaged, or of a kind that this browser does not open`);
    }
    const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height)));
    const width = Math.max(1, Math.floor(bitmap.width * scale)), height = Math.max(1, Math.floor(bitmap.height * scale));
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, width, height);
    bitmap.close();
    const { data } = context.getImageData(0, 0, width, height);
    const pixels = new Uint8Array(width * height * 3);
    for (let from = 0, to = 0; from < data.length; from += 4) {
      pixels[to++] = data[from];
      pixels[to++] = data[from + 1];
      pixels[to++] = data[from + 2];
    }
    return new ort.Tensor("uint8", pixels, [height, width, 3]);
  }

  async function predict({ file }) {
    const outputs = await session.run({ image: await decode(file) });
    return { probabilities: Array.from(outputs.probabilities.data) };
  }

  self.onmessage = async ({ data }) => {
    try {
      postMessage(await (data.file ? predict : open)(data));
    } catch (error) {
      postMessage({ error: error?.message || String(error) });
    }
  };
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

// The content of {address, bytes, integrity} of model.json; `count` is told of the bytes as they come. What was packed
// is unpacked here: many hosts send files as they are.
async function load({ address, integrity }, count) {
  const response = await fetch(address, { integrity: integrity ?? "" });
  if (!response.ok) throw new Error(`${address}: status ${response.status}`);
  const chunks = [];
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    count(value.length);
  }
  const blob = new Blob(chunks);
  const start = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  const isPacked = start[0] === 0x1f && start[1] === 0x8b;   // gzip, unless the host has said so and it came unpacked
  const stream = isPacked ? blob.stream().pipeThrough(new DecompressionStream("gzip")) : blob.stream();
  return new Response(stream).arrayBuffer();
}

let worker = null;

// What the worker answers. It is asked one thing at a time.
const ask = (message, transfer = []) => new Promise((resolve, reject) => {
  worker.onmessage = ({ data }) => data.error ? reject(new Error(data.error)) : resolve(data);
  worker.onerror = (event) => reject(new Error(event.message || "the worker does not start"));
  worker.postMessage(message, transfer);
});

// as Predictor.abstain: whether the expected number of wrong entries, over one more than the labels, exceeds the cut
function abstains({ abstention, thresholds }, probabilities) {
  if (!abstention) return false;
  const chosen = decide(probabilities, thresholds);
  const doubt = probabilities.reduce((sum, probability, index) => {
    const logit = abstention.scale[index] * Math.log(probability / (1 - probability)) + abstention.bias[index];
    return sum + 1 / (1 + Math.exp(chosen.has(index) ? logit : -logit));
  }, 0);
  return doubt / (chosen.size + 1) > abstention.cut;
}

let facts = null;   // model.json

backend = {
  atOnce: 1,

  async open() {
    try {
      if (location.protocol === "file:") {
        throw new Error("a browser reads no files beside a page from a disk; run python -m http.server -d FOLDER");
      }
      const response = await fetch("model.json", { cache: "no-cache" });
      if (!response.ok) throw new Error(`model.json: status ${response.status}`);
      facts = await response.json();
      const files = [facts.runtime.script, facts.runtime.wasm, facts.model];
      const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
      let loaded = 0;
      const count = (bytes) => {
        loaded = Math.min(total, loaded + bytes);
        find("progress").value = loaded / total;
        find("loading-text").textContent = `loading the model: ${megabytes(loaded)} of ${megabytes(total)} MB`;
      };
      count(0);
      const [script, wasm, onnx] = await Promise.all(files.map((file) => load(file, count)));
      find("loading-text").textContent = "preparing the model …";
      find("progress").removeAttribute("value");
      worker = new Worker(URL.createObjectURL(new Blob([`(${workInBackground})()`], { type: "text/javascript" })), { type: "module" });
      await ask({ script, wasm, onnx }, [script, wasm, onnx]);
      const { classes, thresholds, threshold, min_labels, max_labels } = facts;
      return {
        classes: classes.map((name, index) => ({ name, threshold: thresholds[index] })),
        threshold, min_labels, max_labels,
        about: `${facts.model_name}, ${classes.length} classes, ${megabytes(total)} MB`,
      };
    } catch (error) {
      throw new Error(`the model does not load: ${error.message}`);
    } finally {
      find("loading").hidden = true;
    }
  },

  async predict(file) {
    const { probabilities } = await ask({ file });
    return { probabilities, abstains: abstains(facts, probabilities) };
  },
};
begin();
