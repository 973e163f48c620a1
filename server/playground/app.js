// The page: wires what index.html names to the parts that do the work.

import { access, apiKey, ask } from "./api.js";
import { Chat } from "./chat.js";
import { Claims } from "./claims.js";
import { Demonstration } from "./demo.js";
import { byId, copyText, counted, el, setText } from "./dom.js";
import { conversationJson, curlLine, save } from "./exports.js";
import { watchParameters } from "./parameters.js";
import { PoolPanel } from "./pool_panel.js";
import { watchKeys } from "./keys.js";
import { watchTheme } from "./theme_switch.js";

const claims = new Claims();
const model = () => byId("model").value;
const composer = byId("composer-text");

const chat = new Chat(byId("log"), {
  model,
  claims,
  onChange(busy, empty) {
    byId("send").hidden = busy;
    byId("stop").hidden = !busy;
    byId("welcome").hidden = !empty;
    byId("new-chat").disabled = empty;
    for (const id of ["export-json", "export-curl"]) byId(id).disabled = empty;
    setText(byId("spoken"), busy ? "Answering." : empty ? "" : "Answer complete.");
  },
});

const panel = new PoolPanel({
  nameOf: (sequence) => claims.nameOf(sequence),
  onFrame: (pool) => claims.match(pool),
});

const demonstration = new Demonstration({
  model,
  claims,
  onChange(left) {
    setText(byId("fill"), left ? `Stop (${left} running)` : "Fill the pool");
    byId("fill").setAttribute("aria-pressed", String(left > 0));
  },
});

// --- composing -------------------------------------------------------------------------------------------------------

function send() {
  const text = composer.value.trim();
  if (!text || chat.busy || !model()) return;
  composer.value = "";
  grow();
  chat.send(text);
}

/** As high as its text, up to what the style sheet allows. */
function grow() {
  composer.style.height = "auto";
  composer.style.height = `${composer.scrollHeight}px`;
}

composer.addEventListener("input", grow);
composer.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && composer.value === "" && chat.lastQuestion()) {
    event.preventDefault();
    chat.lastQuestion().edit();
  }
});
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("stop").addEventListener("click", () => {
  chat.stop();
  composer.focus();
});
byId("new-chat").addEventListener("click", () => {
  chat.clear();
  composer.focus();
});
for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => {
    if (!model()) return;
    chat.send(example.textContent.trim());
    composer.focus();
  });
}

// --- the demonstration -----------------------------------------------------------------------------------------------

byId("fill").addEventListener("click", async () => {
  if (demonstration.running) {
    demonstration.stop();
    return;
  }
  const notice = byId("fill-failure");
  notice.hidden = true;
  try {
    await demonstration.run();
  } catch (error) {
    setText(notice, error.message);
    notice.hidden = false;
  }
});

// --- what leaves the page --------------------------------------------------------------------------------------------

byId("export-json").addEventListener("click", () => save("quire-conversation.json", conversationJson(chat)));
byId("export-curl").addEventListener("click", async () => {
  let said = "Copied";
  try {
    await copyText(curlLine(chat.lastRequest()));
  } catch {
    said = "Not copied";
  }
  setText(byId("export-curl"), said);
  setTimeout(() => setText(byId("export-curl"), "Copy as curl"), 1600);
});

/** A menu closes when something else is wanted. */
document.addEventListener("click", (event) => {
  const menu = byId("export");
  if (menu.open && !menu.contains(event.target)) menu.open = false;
});

// --- which model, and whether we may ---------------------------------------------------------------------------------

let pause = 500;

/** Ask which models there are, again and again until the server says. */
async function loadModels() {
  try {
    const { data } = await (await ask("v1/models")).json();
    const chosen = model();
    byId("model").replaceChildren(...data.map((card) => el("option", { value: card.id, selected: card.id === chosen }, card.id)));
    byId("model").disabled = data.length < 2;
    byId("model").title = data.length ? `context ${counted(data[0].max_model_len, "token")}` : "";
    byId("server-notice").hidden = true;
    pause = 500;
  } catch (error) {
    if (error.status === 401) return;
    setText(byId("server-notice"), error.code === "model_loading" ? "The model is being loaded." : error.message);
    byId("server-notice").hidden = false;
    setTimeout(loadModels, pause);
    pause = Math.min(pause * 2, 5000);
  }
}

access.addEventListener("unauthorized", () => {
  const first = byId("key-form").hidden;
  byId("key-form").hidden = false;
  setText(byId("key-message"), apiKey.get() ? "The server does not know this key." : "This server wants an API key.");
  if (first) byId("key").focus();
});
access.addEventListener("authorized", () => {
  byId("key-form").hidden = true;
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey.set(byId("key").value.trim());
  byId("key").value = "";
  loadModels();
  composer.focus();
});

// --- two columns, or one at a time -----------------------------------------------------------------------------------

/** On a narrow page: which of the two is shown. */
function show(name) {
  document.body.dataset.shown = name;
  for (const tab of document.querySelectorAll("[data-tab]")) {
    tab.setAttribute("aria-pressed", String(tab.dataset.tab === name));
  }
  panel.consider();
}

for (const tab of document.querySelectorAll("[data-tab]")) {
  tab.addEventListener("click", () => show(tab.dataset.tab));
}

function togglePool() {
  const folded = document.body.classList.toggle("pool-folded");
  byId("pool-switch").setAttribute("aria-pressed", String(!folded));
  panel.consider();
}
byId("pool-switch").addEventListener("click", togglePool);

watchParameters();
watchTheme(() => panel.canvas.recolour());
watchKeys({ chat, composer, togglePool });
show("chat");
loadModels();
if (matchMedia("(pointer: fine)").matches) composer.focus();
