"use strict";

// Texts of the registry and of answers become text nodes, never markup.
const byId = (id) => document.getElementById(id);
let models = [];
let chosen = new Set();
let key = null; // kept in this page's memory alone

function make(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function ask(path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers };
  if (body) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  const answer = await fetch(path, options);
  const found = await answer.json();
  if (answer.status === 401) byId("key-form").hidden = false;
  if (!answer.ok) throw new Error(found.error ? found.error.message : answer.statusText);
  return found;
}

function say(text, isProblem) {
  byId("message").textContent = text;
  byId("message").className = isProblem ? "problem" : "";
}

async function load() {
  try {
    byId("backbone").textContent = (await ask("health")).backbone;
    models = (await ask("v1/models")).data;
    if (!chosen.size && models.length) chosen.add((models.find((one) => one.kind === "composition") || models[0]).id);
    list();
    columns();
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

function list() {
  const wanted = byId("find").value.toLowerCase();
  const body = byId("models").tBodies[0];
  body.replaceChildren();
  const shown = models.filter((one) => `${one.id} ${one.task} ${one.tags.join(" ")}`.toLowerCase().includes(wanted));
  for (const one of shown.slice(0, 500)) {
    const row = make("tr");
    const box = make("input");
    box.type = "checkbox";
    box.checked = chosen.has(one.id);
    box.setAttribute("aria-label", `ask ${one.id}`);
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(one.id);
      else chosen.delete(one.id);
      columns();
    });
    const name = make("button", one.id);
    name.type = "button";
    name.addEventListener("click", () => lineage(one.id, row));
    const cells = [box, name, one.kind, one.task, one.labels ? Object.values(one.labels).join(", ") : "text"];
    for (const cell of cells) {
      const place = make("td");
      place.append(cell);
      row.append(place);
    }
    body.append(row);
  }
  if (shown.length > 500) body.append(make("tr", `… and ${shown.length - 500} more`));
}

async function lineage(id, row) {
  for (const other of byId("models").tBodies[0].rows) other.classList.toggle("chosen", other === row);
  const place = byId("lineage");
  try {
    const one = await ask(`v1/models/${encodeURIComponent(id)}`);
    const facts = {
      name: one.record, kind: one.kind, method: one.method, task: one.task, reads: one.columns.join(", "),
      "prompt stands": `${one.placement} the input`, sources: one.sources.join(", "), targets: one.targets.join(", "),
      "trained from": one.lineage.parents.join(", "), "no longer there": one.lineage.removed.join(", "),
      "made of it": [...one.lineage.children, ...one.lineage.compositions].join(", "),
      tags: one.tags.join(", "), note: one.note, made: new Date(one.created * 1000).toISOString().slice(0, 10),
    };
    const shown = make("dl");
    for (const [name, text] of Object.entries(facts)) if (text) shown.append(make("dt", name), make("dd", text));
    place.replaceChildren(shown);
  } catch (error) {
    place.replaceChildren(make("p", error.message, "problem"));
  }
}

// One box with an input a line where the chosen read one column, else a box a column.
function columns() {
  const read = new Set(models.filter((one) => chosen.has(one.id)).flatMap((one) => one.columns));
  const place = byId("columns");
  const before = Object.fromEntries([...place.querySelectorAll("textarea")].map((box) => [box.dataset.column, box.value]));
  place.replaceChildren();
  for (const column of read) {
    const label = make("label", read.size === 1 ? `${column}, one a line` : column);
    const box = make("textarea");
    box.dataset.column = column;
    box.value = before[column] || "";
    label.append(box);
    place.append(label);
  }
  if (!read.size) place.append(make("p", "Choose a prompt or a composition."));
}

function inputs() {
  const boxes = [...byId("columns").querySelectorAll("textarea")];
  if (boxes.length === 1) {
    const lines = boxes[0].value.split("\n").filter((line) => line.trim());
    return lines.map((line) => ({ [boxes[0].dataset.column]: line }));
  }
  return [Object.fromEntries(boxes.map((box) => [box.dataset.column, box.value]))];
}

async function tryIt(event) {
  event.preventDefault();
  const rows = inputs();
  if (!rows.length || !chosen.size) return say("Choose a prompt, and write an input.", true);
  byId("ask").disabled = true;
  say("…");
  try {
    const began = performance.now();
    const found = await ask("predict", { inputs: rows, models: [...chosen] });
    say(`${rows.length * chosen.size} answers in ${Math.round(performance.now() - began)} ms`);
    byId("answers").replaceChildren(...Object.entries(found.predictions).map(([id, of]) => answers(id, of, rows)));
  } catch (error) {
    say(error.message, true);
  } finally {
    byId("ask").disabled = false;
  }
}

function answers(id, predictions, rows) {
  const section = make("div");
  section.append(make("h3", id));
  const texts = rows.map((row) => Object.values(row).join(" · "));
  predictions.forEach((one, number) => {
    section.append(make("p", texts[number], "input"));
    section.append(one.probabilities ? bars(one) : make("p", one.text));
    if (one.truncated) section.append(make("p", `${one.truncated} tokens did not fit and were left out.`));
  });
  if (predictions.some((one) => one.attention)) section.append(heat(predictions, texts));
  return section;
}

function bars(one) {
  const shown = make("div", null, "bars");
  for (const [word, share] of Object.entries(one.probabilities)) {
    const track = make("div", null, "track");
    const bar = make("div", null, "bar");
    bar.style.width = `${100 * share}%`;
    track.append(bar);
    const best = word === one.word ? "best" : "";
    shown.append(make("span", word, best), track, make("span", share.toFixed(3), `number ${best}`));
  }
  return shown;
}

// Who attends to what: an input a row, a source a column.
function heat(predictions, texts) {
  const names = Object.keys(predictions.find((one) => one.attention).attention);
  const table = make("table", null, "heat");
  const head = table.createTHead().insertRow();
  for (const name of ["attention", ...names]) head.append(make("th", name));
  const body = table.createTBody();
  predictions.forEach((one, number) => {
    const row = body.insertRow();
    row.append(make("td", texts[number].length > 60 ? `${texts[number].slice(0, 59)}…` : texts[number]));
    for (const name of names) {
      const weight = one.attention[name];
      const cell = make("td", weight.toFixed(2), weight > 0.6 ? "cell dark" : "cell");
      cell.style.backgroundColor = `hsl(210 60% ${96 - 62 * weight}%)`;
      row.append(cell);
    }
  });
  return table;
}

byId("find").addEventListener("input", list);
byId("try").addEventListener("submit", tryIt);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value;
  byId("key-form").hidden = true;
  load();
});
load();
