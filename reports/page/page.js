"use strict";

/* Sorting and filters of the tables, and the rollout browser. Text of models enters the page by textContent only. */

const byId = (id) => document.getElementById(id);

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children); // strings become text nodes
  return node;
}

/* Sorting: highest first for numbers, then the other way, then the order of the report. Delta rows and holes stay last. */

function makeSortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = element("button", "", header.textContent);
    button.type = "button";
    header.replaceChildren(button);
    const first = header.classList.contains("number") ? "descending" : "ascending";
    const second = first === "descending" ? "ascending" : "descending";
    button.addEventListener("click", () => {
      const now = header.getAttribute("aria-sort");
      const next = now === first ? second : now === second ? null : first;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) header.setAttribute("aria-sort", next);
      body.append(...(next ? sorted(original, column, next, header.classList.contains("number")) : original));
    });
  });
}

function sorted(rows, column, order, isNumber) {
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => {
    const cell = row.cells[column];
    if (isNumber) return "sort" in cell.dataset ? Number(cell.dataset.sort) : null;
    return cell.textContent === "-" ? null : cell.textContent;
  };
  const compare = (a, b) => (isNumber ? a - b : a.localeCompare(b, "en", { numeric: true }));
  return [...rows].sort((rowA, rowB) => {
    const [a, b] = [key(rowA), key(rowB)];
    const last = rowA.classList.contains("delta") - rowB.classList.contains("delta");
    return last || (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b));
  });
}

/* Filters: what names no label, student or family belongs to all of them. */

function applyFilters() {
  const boxes = [...document.querySelectorAll("#filter-label input")];
  const labels = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  const student = byId("filter-student")?.value ?? "";
  const family = byId("filter-family")?.value ?? "";
  const fits = ({ student: s, family: f }) => (!student || !s || s === student) && (!family || !f || f === family);
  for (const row of document.querySelectorAll("tbody tr")) {
    const label = row.dataset.label;
    row.hidden = !fits(row.dataset) || Boolean(boxes.length && label && !labels.has(label));
  }
  const tables = [...document.querySelectorAll("section.table")];
  for (const table of tables) {
    table.hidden = !fits(table.dataset) || !table.querySelector("tbody tr:not([hidden])");
  }
  if (boxes.length) byId("label-count").textContent = labels.size === boxes.length ? "all" : `${labels.size} of ${boxes.length}`;
  const numShown = tables.filter((table) => !table.hidden).length;
  byId("filter-result").textContent = numShown === tables.length ? "" : `${numShown} of ${tables.length} tables shown`;
}

function startFilters() {
  const filters = byId("filters");
  if (!filters.querySelector("select, input")) return;
  filters.hidden = false;
  filters.addEventListener("change", applyFilters);
  for (const [id, checked] of [["labels-all", true], ["labels-none", false]]) {
    byId(id)?.addEventListener("click", () => {
      for (const box of document.querySelectorAll("#filter-label input")) box.checked = checked;
      applyFilters();
    });
  }
}

/* Rollout browser */

const KINDS = {
  plain: "Plain prompt", bcq: "BCQ prompt", ncq: "NCQ prompt", hint: "Hint prompt", prefix: "Prefix prompt",
  extra: "Plain prompt, further group",
};

/* As everywhere, a group's accuracy is the student's; only where it has no rollouts here the teacher's. */
function accuracy(group) {
  const own = group.responses.filter((response) => response.sampler === "student");
  const counted = (own.length ? own : group.responses).filter((response) => response.reward !== null);
  return `${counted.filter((response) => response.reward > 0.5).length}/${counted.length}`;
}

function textBlock(text, className) {
  const block = element("pre", `text ${className}`, text.head);
  if (text.num_left_out) {
    block.append(element("span", "cut", `\n[${text.num_left_out} characters left out]\n`), text.tail);
  }
  return block;
}

function responseBlock(response) {
  const kind = { correct: "correct", ungraded: "ungraded" }[response.verdict] ?? "wrong";
  const verdict = element("span", `verdict ${kind}`, response.verdict);
  const signed = (value) => (value > 0 ? "+" : "") + value.toFixed(3);
  const facts = [response.reward === null ? "no reward" : `reward ${response.reward}`];
  if (response.training_reward !== null) facts.push(`training reward ${response.training_reward}`);
  if (response.advantage !== null) facts.push(`advantage ${signed(response.advantage)}`);
  else facts.push(response.trained ? "trained without advantage" : "not trained");
  facts.push(response.sampler, `${response.num_tokens} tokens`);
  if (response.finish_reason === "length") facts.push("cut off by the length limit");
  if (response.match !== null) facts.push(`gives the answer of: ${response.match}`);
  const block = element("details", "response", element("summary", "", verdict, ` · ${facts.join(" · ")}`));
  block.append(textBlock(response.text, "reply"));
  block.open = response.text.head.length + response.text.tail.length <= 800;
  return block;
}

function groupBlock(group) {
  const sampler = group.responses.some((response) => response.sampler === "student") ? "" : " to the teacher";
  const title = `${KINDS[group.kind] ?? group.kind}${sampler}, ${accuracy(group)} right`;
  const prompt = textBlock(group.prompt, "prompt");
  prompt.tabIndex = 0;
  const block = element("section", "", element("h4", "", title), prompt, ...group.responses.map(responseBlock));
  block.dataset.kind = group.kind;
  return block;
}

function startBrowser() {
  const questions = JSON.parse(byId("rollout-data").textContent);
  if (!questions.length) return;
  const [runs, choice, place] = ["choose-run", "choose-question", "question"].map(byId);
  const option = (value, text) => {
    const node = element("option", "", text);
    node.value = value;
    return node;
  };
  /* The first that shows most: all three prompts, where there is such a question. */
  const richest = (places) =>
    places.reduce((best, i) => (questions[i].groups.length > questions[best].groups.length ? i : best));
  const showQuestion = () => {
    const question = questions[Number(choice.value)];
    const title = element("h3", "", question.question_id);
    const facts = element("p", "note", `Step ${question.step}, right answer ${question.gold}`);
    const kinds = [...new Set(question.groups.map((group) => group.kind))];
    const columns = kinds.map((kind) =>
      element("div", "column", ...question.groups.filter((group) => group.kind === kind).map(groupBlock)));
    place.replaceChildren(title, facts, element("div", "groups", ...columns));
  };
  const showRun = () => {
    const own = [...questions.keys()].filter((i) => questions[i].run === runs.value);
    choice.replaceChildren(...own.map((i) => option(i, questionName(questions[i]))));
    choice.value = richest(own);
    showQuestion();
  };
  const names = [...new Set(questions.map((question) => question.run))];
  runs.replaceChildren(...names.map((name) => option(name, name)));
  runs.value = questions[richest([...questions.keys()])].run;
  runs.addEventListener("change", showRun);
  choice.addEventListener("change", showQuestion);
  byId("browser").hidden = false;
  showRun();
}

function questionName(question) {
  const byKind = new Map(); // of several groups of a kind the first, which is the student's
  for (const group of question.groups) if (!byKind.has(group.kind)) byKind.set(group.kind, group);
  const groups = [...byKind.values()].map((group) => `${group.kind} ${accuracy(group)}`);
  return `step ${question.step}, ${groups.join(", ")}: ${question.question_id}`;
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
if (byId("sort-note")) byId("sort-note").hidden = false;
startFilters();
startBrowser();
