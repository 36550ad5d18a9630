"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const sets = [...document.querySelectorAll("section.set")];
  const tip = $("tip"), panel = $("panel"), controls = $("controls");
  let opener = null;

  // Which comparable set is shown; the address keeps it, so that a link or a reload finds it again.
  function current() { return sets.find((s) => !s.hidden); }
  function show(name) {
    const chosen = sets.find((s) => s.id === name) || sets[0];
    for (const s of sets) s.hidden = s !== chosen;
    $("set").value = chosen.id;
    const families = new Set([...chosen.querySelectorAll("tbody tr[data-family]")].map((r) => r.dataset.family));
    const kept = $("family").value;
    $("family").replaceChildren(new Option("all", ""), ...[...families].sort().map((f) => new Option(f, f)));
    if (families.has(kept)) $("family").value = kept;
    filter();
    closePanel();
  }
  function fromAddress() { return decodeURIComponent(location.hash.slice(1)); }

  function filter() {
    const words = $("filter").value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    const family = $("family").value;
    for (const body of current().querySelectorAll(".board tbody")) {
      for (const row of body.rows) {
        const text = `${row.cells[0].firstChild.textContent} ${row.dataset.family}`.toLowerCase();
        row.hidden = (family && row.dataset.family !== family) || (words.length > 0 && !words.some((w) => text.includes(w)));
      }
      rove(body);
    }
    report("");
  }
  function report(text, table = current().querySelector(".board")) {
    const rows = [...table.tBodies[0].rows], shown = rows.filter((r) => !r.hidden).length;
    $("status").textContent = `${shown} of ${rows.length} ${"leader" in table.dataset ? "methods" : "rows"}${text}`;
  }

  function sort(button, descending) {
    const table = button.closest("table"), body = table.tBodies[0], column = Number(button.dataset.column) + 1;
    const sign = descending ? -1 : 1;
    // Numbers come first, then texts, then what has no value, whichever way the column is sorted.
    const keyed = [...body.rows].map((row) => {
      const label = row.cells[0].firstChild.textContent, cell = row.cells[column];
      const text = column ? cell.textContent.trim() : label, number = Number((column && cell.dataset.v) || text);
      const place = ["", "–", "?", "failed"].includes(text) ? 2 : Number.isNaN(number) || !column ? 1 : 0;
      return { row, label, text, number, place };
    });
    keyed.sort((a, b) => a.place - b.place || sign * (a.place ? a.text.localeCompare(b.text) : a.number - b.number) || a.label.localeCompare(b.label));
    body.append(...keyed.map((k) => k.row));
    for (const head of table.querySelectorAll("th[aria-sort]")) head.setAttribute("aria-sort", "none");
    button.closest("th").setAttribute("aria-sort", descending ? "descending" : "ascending");
    rove(body);
    const ends = keyed.length && keyed[0].place === 0 ? ["lowest", "highest"] : ["A", "Z"];
    report(`, by ${button.textContent}, ${ends[Number(descending)]} first`, table);
  }
  function onSort(button) {
    const now = button.closest("th").getAttribute("aria-sort");
    const ascendingFirst = "ascending" in button.dataset || button.dataset.column === "-1";
    sort(button, now === "none" ? !ascendingFirst : now === "ascending");
  }

  // One cell of a table is in the tab order; arrow keys move from there.
  function rove(body) {
    for (const link of body.querySelectorAll('a[tabindex="0"]')) link.tabIndex = -1;
    const first = body.querySelector("tr:not([hidden]) td a");
    if (first) first.tabIndex = 0;
  }
  function move(link, key) {
    const cell = link.parentElement, steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (!(key in steps)) return false;
    const rows = [...cell.closest("tbody").rows].filter((r) => !r.hidden);
    let row = rows.indexOf(cell.parentElement), column = cell.cellIndex, next = null;
    do {
      row += steps[key][0];
      column += steps[key][1];
      const target = rows[row] && rows[row].cells[column];
      if (!target || column < 1) return true;
      next = target.querySelector("a");
    } while (!next);
    link.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
    return true;
  }

  // The runs behind a cell, by column of the task.
  function behind(link) {
    const board = data[link.closest("table").dataset.board];
    const row = board.rows[Number(link.closest("tr").dataset.row)];
    const column = link.parentElement.cellIndex - 1;
    const tasks = board.columns[column].map((name) => ({ name, runs: row.runs[name] || [] })).filter((t) => t.runs.length);
    return { board, row, tasks, name: board.names[column], target: board.targets[column], plain: board.plain[column] };
  }
  const seedText = (run) => (run[1] === null ? "" : `split ${run[1]}, `) + `seed ${run[0]}`;
  const noValue = (run) => (run[4] ? "failed" : "not known");
  function valueText(board, run, target) {
    const value = target && run[2] !== null ? run[5][target] : run[2];
    return value === null ? noValue(run) : value === undefined ? "not scored" : value.toFixed(board.digits);
  }
  function tipText(link) {
    const { board, row, tasks, name, target, plain } = behind(link);
    const runs = tasks.flatMap((t) => t.runs);
    const head = `${row.label}, ${name}\n`;
    if (!plain) return head + `${runs.length} run${runs.length === 1 ? "" : "s"}`;
    if (tasks.length === 1) return head + runs.slice(0, 12).map((r) => `${seedText(r)}: ${valueText(board, r, target)}`).join("\n") + (runs.length > 12 ? `\nand ${runs.length - 12} more` : "");
    const seeds = [...new Set(runs.map(seedText))];
    const lines = seeds.slice(0, 12).map((seed) => {
      const values = tasks.map((t) => t.runs.find((r) => seedText(r) === seed && r[2] !== null)).filter(Boolean).map((r) => r[2]);
      const mean = values.reduce((a, b) => a + b, 0) / values.length;
      return `${seed}: ` + (values.length ? `${board.metric} ${mean.toFixed(board.digits)}, mean of ${values.length} task${values.length > 1 ? "s" : ""}` : noValue(runs.find((r) => seedText(r) === seed)));
    });
    return head + lines.join("\n");
  }
  function showTip(link) {
    tip.textContent = tipText(link);
    tip.hidden = false;
    link.setAttribute("aria-describedby", "tip");
    const box = link.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const above = box.top - size.height - 6;
    tip.style.left = `${Math.max(6, Math.min(box.right - size.width, innerWidth - size.width - 6))}px`;
    tip.style.top = `${above > 6 ? above : Math.min(box.bottom + 6, innerHeight - size.height - 6)}px`;
  }
  function hideTip() {
    tip.hidden = true;
    for (const link of document.querySelectorAll('[aria-describedby="tip"]')) link.removeAttribute("aria-describedby");
  }

  function element(kind, text) {
    const made = document.createElement(kind);
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function address(board, row, column, run) {
    const task = column.replace(/ \d+-shot$/, "");
    const base = board.bases[run[6]];
    return base && `${base}/${encodeURIComponent(task)}/${encodeURIComponent(`${row.method}-${run[3]}`)}/record.json`;
  }
  function openPanel(link) {
    const { board, row, tasks, name, target } = behind(link);
    $("panel-title").textContent = `${row.label}, ${name}`;
    const parts = tasks.flatMap((task) => {
      const list = element("ul");
      for (const run of task.runs) {
        const item = element("li", `${seedText(run)}: ${valueText(board, run, target)} `), anchor = element("a", run[3]);
        const href = address(board, row, task.name, run);
        if (href) anchor.href = href;
        anchor.title = href ? "record.json of this run" : "its record is in a pack";
        item.append(anchor, run[4] ? ` ${run[4]}` : "");
        list.append(item);
      }
      return [element("h3", task.name), list];
    });
    $("panel-body").replaceChildren(...parts);
    panel.hidden = false;
    opener = link;
    hideTip();
    $("panel-title").focus();
  }
  function closePanel() {
    if (panel.hidden) return;
    panel.hidden = true;
    if (opener && opener.isConnected) opener.focus();
    hideTip();
  }

  const themes = { "": ["◐ auto", "as the system"], light: ["○ light", "light"], dark: ["● dark", "dark"] };
  function theme(name) {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    $("theme").textContent = themes[name][0];
    $("theme").setAttribute("aria-label", `Colours: ${themes[name][1]}; press to change`);
    try { localStorage.setItem("sctbench-theme", name); } catch { /* not stored where storage is off */ }
  }
  function storedTheme() {
    try { return localStorage.getItem("sctbench-theme") || ""; } catch { return ""; }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".sort"), link = event.target.closest(".board td a");
    if (button) onSort(button);
    else if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) { event.preventDefault(); openPanel(link); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { hideTip(); closePanel(); return; }
    const link = event.target.closest && event.target.closest(".board td a");
    if (link && move(link, event.key)) event.preventDefault();
  });
  const cellLink = (target) => target && target.closest && target.closest(".board td a");
  for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, (event) => {
    // A page that scrolls under a resting mouse must not take away the tip of the cell that has the focus.
    const link = cellLink(event.target) || (kind === "mouseover" ? cellLink(document.activeElement) : null);
    hideTip();
    if (link) showTip(link);
  });
  // Focus may scroll its cell into view: its tip goes with it, any other goes away.
  document.addEventListener("scroll", () => {
    const link = document.activeElement;
    if (!tip.hidden && link && link.getAttribute("aria-describedby") === "tip") showTip(link);
    else hideTip();
  }, { capture: true, passive: true });
  $("close").addEventListener("click", closePanel);
  $("filter").addEventListener("input", filter);
  $("family").addEventListener("change", filter);
  $("set").addEventListener("change", () => { history.replaceState(null, "", `#${encodeURIComponent($("set").value)}`); show($("set").value); });
  controls.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => { if (sets.some((s) => s.id === fromAddress())) show(fromAddress()); });
  $("theme").addEventListener("click", () => {
    const names = Object.keys(themes);
    theme(names[(names.indexOf(document.documentElement.dataset.theme || "") + 1) % names.length]);
  });

  $("theme").hidden = false;
  theme(storedTheme() in themes ? storedTheme() : "");
  if (sets.length) {
    controls.hidden = false;
    for (const section of sets) {
      sets.forEach((s) => { s.hidden = s !== section; });
      const first = section.querySelector('.board .sort[data-column="0"]');  // the mean over everything, if there is one
      if (first) sort(first, !("ascending" in first.dataset));
    }
    show(fromAddress());
  }
})();
