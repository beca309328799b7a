
// ---- the server that sent this page ----

const LOST = "the server does not answer: start it, then load this page again";

// a token stays with this page until it is closed
async function call(path, options = {}) {
  const token = sessionStorage.getItem("token");
  try {
    return await fetch(path, { ...options, headers: token ? { Authorization: `Bearer ${token}` } : {} });
  } catch {
    throw new Error(LOST);
  }
}

async function post(path, fields) {
  const form = new FormData();
  fields.forEach(([name, ...value]) => form.append(name, ...value));
  const response = await call(path, { method: "POST", body: form });
  if (!response.ok) throw new Error((await response.json()).errorMsg);
  return response;
}

const asField = (file) => ["files", file, file.name || "pasted picture"];

backend = {
  atOnce: 4,

  async open() {
    const [labels, health] = await Promise.all(["labels", "health"].map((path) => call(path)));
    find("access").hidden = labels.status !== 401;
    if (labels.status === 401) {
      find("about").textContent = "waiting for the token";
      fail(sessionStorage.getItem("token") ? "the server does not take this token" : "");
      sessionStorage.removeItem("token");
      find("token").focus();
      return null;
    }
    const about = await health.json();
    const opened = await labels.json();
    opened.maps = about.maps;
    opened.about = `${about.model} (${about.file}), ${opened.classes.length} classes, ${about.engine}`;
    return opened;
  },

  async predict(file) {
    const response = await post("predict", [asField(file)]);
    const { probabilities, novelty, abstains } = (await response.json()).predictions[0];
    return { probabilities, novelty, abstains };
  },

  async map(file, index) {
    return (await post("map", [asField(file), ["label", String(index)]])).blob();
  },
};

find("access").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", find("token").value.trim());
  find("token").value = "";
  begin();
};
begin();
