"use strict";
(() => {
  const byId = (id) => document.getElementById(id);

  // Theme: follows the system until the reader chooses.
  const root = document.documentElement;
  const theme = byId("theme");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const label = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`); };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();

  // Tables: a press on a column's head sorts by it.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? (up ? "ascending" : "descending") : "none"));
      const key = (row) => { const cell = row.cells[column]; return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value); };
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // gaps stay at the end, whichever way
        const order = typeof x === "number" ? x - y : x.localeCompare(y);
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    }));
  }

  // Everything is printed, also what is folded.
  addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach((each) => { each.open = true; each.dataset.folded = ""; }));
  addEventListener("afterprint", () => document.querySelectorAll("details[data-folded]").forEach((each) => { each.open = false; delete each.dataset.folded; }));

  if (byId("data")) explorer();

  function explorer() {
    const SIZE = 20;
    const control = Object.fromEntries(["query", "suite", "attribute", "variant", "against", "change"].map((id) => [id, byId(id)]));
    let world, found = [], at = 0, revealed = !byId("optin");
    const section = byId("items");
    const watcher = new IntersectionObserver((entries) => { if (entries.some((each) => each.isIntersecting)) { watcher.disconnect(); start(); } }, { rootMargin: "600px" });
    watcher.observe(section);

    async function start() {
      const packed = Uint8Array.from(atob(byId("data").textContent), (char) => char.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      world = JSON.parse(await new Response(stream).text());
      for (const suite of world.suites) {
        suite.haystack = suite.asked.map((text, row) => {
          const said = suite.said.map((column) => (column ? world.texts[column[row]] ?? "" : ""));
          return [world.texts[text] ?? "", suite.tags[row].map((tag) => world.tags[tag]).join(" "), ...said].join("\n").toLowerCase();
        });
      }
      fill(control.suite, world.suites.map((suite, index) => [index, suite.name]));
      control.suite.addEventListener("change", () => { choices(); search(); });
      for (const id of ["attribute", "variant", "against", "change"]) control[id].addEventListener("change", search);
      control.query.addEventListener("input", search);
      byId("filters").addEventListener("submit", (event) => event.preventDefault());
      byId("previous").addEventListener("click", () => turn(-1));
      byId("next").addEventListener("click", () => turn(1));
      byId("filters").hidden = false;
      if (byId("optin")) {
        byId("optin").hidden = false;
        byId("reveal").addEventListener("click", () => {
          revealed = !revealed;
          byId("reveal").setAttribute("aria-pressed", String(revealed));
          byId("reveal").textContent = revealed ? "Hide the texts" : "Show the texts";
          show();
        });
      }
      choices();
      search();
      section.dataset.ready = "";
    }

    const suite = () => world.suites[Number(control.suite.value)];

    function choices() {
      const here = suite();
      fill(control.attribute, [["", "any"], ...[...new Set(here.tags.flat())].sort((a, b) => world.tags[a].localeCompare(world.tags[b])).map((tag) => [tag, world.tags[tag]])]);
      const names = here.variants.map((name, index) => [index, name]);
      fill(control.variant, names, here.variants.indexOf("SPUNGE"));
      fill(control.against, names, here.variants.indexOf("base model"));
    }

    function fill(select, options, chosen) {
      select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
      if (chosen >= 0) select.value = String(chosen);
    }

    function search() {
      const began = performance.now();
      const here = suite();
      const query = control.query.value.trim().toLowerCase();
      const tag = control.attribute.value === "" ? null : Number(control.attribute.value);
      const [mine, theirs] = [here.scores[control.variant.value], here.scores[control.against.value]];
      const change = control.change.value;
      found = [];
      for (let row = 0; row < here.asked.length; row++) {
        if (tag !== null && !here.tags[row].includes(tag)) continue;
        if (change) {
          const [a, b] = [mine[row], theirs[row]];
          if (a === null || b === null) continue;
          const better = here.higher ? a > b : a < b;
          if (change === "same" ? a !== b : a === b || better !== (change === "fixed")) continue;
        }
        if (query && !here.haystack[row].includes(query)) continue;
        found.push(row);
      }
      at = 0;
      show();
      section.dataset.milliseconds = (performance.now() - began).toFixed(1);
    }

    function turn(by) {
      at += by;
      show();
      byId("count").scrollIntoView({ block: "center" });
    }

    function show() {
      const here = suite();
      const pages = Math.max(1, Math.ceil(found.length / SIZE));
      byId("count").textContent = `${found.length.toLocaleString("en")} of ${here.asked.length.toLocaleString("en")} items`;
      byId("page").textContent = `${at + 1} / ${pages}`;
      byId("previous").disabled = at === 0;
      byId("next").disabled = at >= pages - 1;
      byId("pager").hidden = pages === 1;
      byId("list").replaceChildren(...found.slice(at * SIZE, (at + 1) * SIZE).map((row) => card(here, row)));
    }

    function card(here, row) {
      const item = element("article", "item");
      const asked = element("p", "asked");
      write(asked, world.texts[here.asked[row]], here.offensive);
      const tags = element("p", "tags", here.tags[row].map((tag) => world.tags[tag]).join(" · "));
      const spoken = here.said.some((column) => column) && (revealed || !here.offensive);
      const list = element("ul", spoken ? "spoken" : "");
      here.variants.forEach((name, index) => {
        const value = here.scores[index][row];
        if (value === null) return;
        const line = element("li", "");
        const good = here.binary ? (value === 1) === here.higher : null;
        const verdict = here.binary ? here.words[value] : value.toFixed(2);
        line.append(element("span", "who", name), element("span", `score ${good === null ? "" : good ? "good" : "bad"}`, verdict));
        if (spoken) {
          const said = element("span", "said");
          if (here.said[index]) write(said, world.texts[here.said[index][row]], here.offensive);
          line.append(said);
        }
        list.append(line);
      });
      item.append(asked, tags, list);
      return item;
    }

    // Text only ever enters as text nodes.
    function write(place, text, offensive) {
      place.dir = "auto";
      if (text === undefined || text === null) return;
      if (offensive && !revealed) { place.classList.add("veiled"); place.textContent = "hidden"; return; }
      const query = control.query.value.trim();
      let from = 0;
      const low = text.toLowerCase();
      if (query && low.length === text.length) {
        for (let hit; (hit = low.indexOf(query.toLowerCase(), from)) >= 0; from = hit + query.length) {
          place.append(text.slice(from, hit), element("mark", "", text.slice(hit, hit + query.length)));
        }
      }
      place.append(text.slice(from));
    }

    function element(kind, name, text) {
      const made = document.createElement(kind);
      if (name) made.className = name.trim();
      if (text !== undefined) made.textContent = text;
      return made;
    }
  }
})();
