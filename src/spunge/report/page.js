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
      const key = (row) => { const data = row.cells[column].dataset.value; return data === undefined ? row.cells[column].textContent.trim() : Number(data); };
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // gaps stay at the end, whichever way
        const order = typeof x === "number" ? x - y : x.localeCompare(y);
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    }));
  }

  if (byId("data")) explorer();

  function explorer() {
    const SIZE = 20; // items a page of the list
    const KEPT = 256; // pieces that stay decoded: more than a small run has, and a few megabytes of a large one
    const CONTROLS = ["suite", "attribute", "variant", "against", "change", "query"];
    const control = Object.fromEntries(CONTROLS.map((id) => [id, byId(id)]));
    const section = byId("items");
    const decoded = new Map();
    let world, matches = [], at = 0, revealed = !byId("optin"), turn = 0, begun;

    function begin() {
      watcher.disconnect();
      return begun ??= start();
    }

    async function unpack(text) {
      const packed = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
      return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
    }
    const parse = (buffer) => JSON.parse(new TextDecoder().decode(buffer));
    const piece = (number) => unpack(byId(`piece-${number}`).textContent);

    async function start() {
      world = parse(await unpack(byId("data").textContent));
      fill(control.suite, world.suites.map((suite) => suite.name));
      control.suite.addEventListener("change", async () => { await open(); search(); });
      for (const id of ["attribute", "variant", "against", "change"]) control[id].addEventListener("change", () => search());
      control.query.addEventListener("input", () => search());
      byId("filters").addEventListener("submit", (event) => event.preventDefault());
      byId("clear").addEventListener("click", () => { control.query.value = control.change.value = control.attribute.value = ""; search(); control.query.focus(); });
      byId("previous").addEventListener("click", () => leaf(-1));
      byId("next").addEventListener("click", () => leaf(1));
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
      await restore();
      section.dataset.ready = "";
    }

    const suite = () => world.suites[control.suite.selectedIndex];

    // A suite's scores and attributes are decoded when it is chosen.
    async function open() {
      const here = suite();
      if (!here.columns) {
        const typed = here.binary ? Uint8Array : Float32Array;
        const columns = await Promise.all(here.scores.map(piece));
        here.columns = columns.map((buffer) => new typed(buffer));
        here.tagColumn = new Uint32Array(await piece(here.tags));
      }
      fill(control.attribute, [...new Set(here.tagSets.flat())].sort((a, b) => a.localeCompare(b)), "any");
      fill(control.variant, here.variants, null, "SPUNGE");
      fill(control.against, here.variants, null, "base model");
    }

    const score = (here, variant, row) => {
      const value = here.columns[variant][row];
      return here.binary ? (value > 1 ? null : value) : Number.isNaN(value) ? null : value;
    };

    function fill(select, names, none, chosen) {
      const options = names.map((name) => new Option(name, name));
      select.replaceChildren(...(none ? [new Option(none, "")] : []), ...options);
      if (chosen && names.includes(chosen)) select.value = chosen;
    }

    // A filter is a URL: what is chosen stands behind the hash, and a link sets it again.
    function remember() {
      const here = suite(), plain = { suite: world.suites[0].name, variant: "SPUNGE", against: "base model", attribute: "", change: "", query: "" };
      const chosen = CONTROLS.filter((id) => control[id].value !== plain[id] && !(id === "suite" && here === world.suites[0]));
      const words = new URLSearchParams(chosen.map((id) => [id, control[id].value]));
      if (at) words.set("page", at + 1);
      if (words.size || location.hash.startsWith("#items?")) history.replaceState(null, "", words.size ? `#items?${words}` : "#items");
    }

    async function restore() {
      const words = new URLSearchParams(location.hash.startsWith("#items?") ? location.hash.slice(7) : "");
      const choose = (id) => { if ([...control[id].options].some((each) => each.value === words.get(id))) control[id].value = words.get(id); };
      control.query.value = words.get("query") ?? "";
      choose("suite");
      await open();
      for (const id of ["attribute", "variant", "against", "change"]) choose(id);
      await search(Math.max(0, (Number(words.get("page")) || 1) - 1));
    }

    // The texts of an item: at once where its piece is decoded, else a promise of them; null beyond what the page holds.
    function texts(here, row) {
      const number = here.texts[Math.floor(row / here.piece)];
      if (number === undefined) return null;
      const content = decoded.get(number);
      return content ? content[row % here.piece] : decode(number).then((rows) => rows[row % here.piece]);
    }

    async function decode(number) {
      const content = parse(await piece(number));
      if (decoded.size >= KEPT) decoded.delete(decoded.keys().next().value);
      decoded.set(number, content);
      return content;
    }

    async function search(page = 0) {
      const began = performance.now(), mine = ++turn, here = suite();
      section.dataset.busy = "";
      const query = control.query.value.trim().toLowerCase();
      const wanted = control.attribute.value && here.tagSets.map((tags) => tags.includes(control.attribute.value));
      const [one, other] = [control.variant.selectedIndex, control.against.selectedIndex];
      const change = control.change.value, rows = [], by = new Float32Array(here.items);
      for (let row = 0; row < here.items; row++) {
        if (wanted && !wanted[here.tagColumn[row]]) continue;
        const [a, b] = [score(here, one, row), score(here, other, row)];
        const both = a !== null && b !== null;
        if (both) by[row] = Math.abs(a - b);
        if (change) {
          if (!both) continue;
          const better = here.higher ? a > b : a < b;
          if (change === "same" ? a !== b : a === b || better !== (change === "fixed")) continue;
        }
        rows.push(row);
      }
      rows.sort((a, b) => by[b] - by[a] || a - b); // answers that changed come first
      matches = rows;
      if (query) {
        matches = [];
        const held = Math.min(here.items, here.texts.length * here.piece);
        for (let seen = 0; seen < rows.length; seen++) {
          if (rows[seen] >= held) continue;
          const content = texts(here, rows[seen]); // awaiting what is there already would cost more than the search
          if (contains(content instanceof Promise ? await content : content, here.tagSets[here.tagColumn[rows[seen]]], query)) matches.push(rows[seen]);
          if (mine !== turn) return; // another search has begun
          if (seen % 5000 === 4999) byId("count").textContent = `${matches.length.toLocaleString("en")} so far, ${Math.round(100 * seen / rows.length)} % searched …`;
        }
      }
      at = Math.min(page, Math.max(0, Math.ceil(matches.length / SIZE) - 1));
      remember();
      await show();
      section.dataset.milliseconds = (performance.now() - began).toFixed(1);
    }

    function contains(content, tags, query) {
      content.hay ??= [content.q, ...(content.a ?? []), ...(content.o ?? []), ...tags].filter(Boolean).join("\n").toLowerCase();
      return content.hay.includes(query);
    }

    async function leaf(by) {
      at += by;
      remember();
      await show();
      byId("count").scrollIntoView({ block: "center" });
    }

    async function show() {
      section.dataset.busy = "";
      const mine = turn, here = suite(), shown = matches.slice(at * SIZE, (at + 1) * SIZE);
      const cards = await Promise.all(shown.map(async (row) => card(here, row, await texts(here, row))));
      if (mine !== turn) return;
      const pages = Math.max(1, Math.ceil(matches.length / SIZE));
      const all = here.items.toLocaleString("en");
      byId("count").textContent = matches.length ? `${matches.length.toLocaleString("en")} of ${all} items` : `None of ${all} items fits this filter.`;
      byId("clear").hidden = matches.length > 0;
      byId("page").textContent = `${at + 1} / ${pages}`;
      byId("previous").disabled = at === 0;
      byId("next").disabled = at >= pages - 1;
      byId("pager").hidden = pages === 1;
      const held = here.texts.length * here.piece;
      byId("held").hidden = held >= here.items;
      byId("held").textContent = `The texts of ${held.toLocaleString("en")} items, those that changed first, are in this page, and are what is searched; all are in items.parquet.`;
      byId("list").replaceChildren(...cards);
      delete section.dataset.busy;
    }

    function card(here, row, content) {
      const item = element("article", "item");
      const asked = element("p", "asked");
      if (content) write(asked, content.q, here.offensive);
      else asked.append(element("i", "veiled", "text in items.parquet only"));
      item.append(asked, element("p", "tags", here.tagSets[here.tagColumn[row]].join(" · ")));
      if (content?.p) item.append(options(here, content));
      const spoken = content?.a && (revealed || !here.offensive);
      const list = element("ul", spoken ? "spoken" : "");
      here.variants.forEach((name, index) => {
        const value = score(here, index, row);
        if (value === null) return;
        const line = element("li", "");
        const good = here.binary ? (value === 1) === here.higher : null;
        line.append(element("span", "who", name), element("span", `score ${good === null ? "" : good ? "good" : "bad"}`, here.binary ? here.words[value] : value.toFixed(2)));
        if (spoken) {
          const answer = element("span", "answer");
          write(answer, content.a[index], here.offensive);
          line.append(answer);
        }
        list.append(line);
      });
      item.append(list);
      return item;
    }

    // The choices of a question, and how probable the two variants that are compared find each.
    function options(here, content) {
      const columns = [...new Set([control.against.selectedIndex, control.variant.selectedIndex])].filter((index) => content.p[index]);
      const table = element("table", "options"), head = element("tr", "");
      head.append(element("th", "", "choice"), ...columns.map((index) => element("th", "", here.variants[index])));
      table.createTHead().append(head);
      const body = table.createTBody();
      const count = Math.max(0, ...columns.map((index) => content.p[index].length));
      for (let choice = 0; choice < count; choice++) {
        const line = element("tr", choice === content.r ? "right" : ""), name = element("th", "");
        name.scope = "row";
        const letter = String.fromCharCode(65 + choice % 26);
        write(name, content.o?.[choice] ?? letter, here.offensive);
        if (choice === content.r) name.append(element("span", "tick", " ✓ right"));
        line.append(name);
        for (const index of columns) {
          const odds = content.p[index], most = odds[choice] === Math.max(...odds);
          line.append(element("td", most ? "most" : "", `${(odds[choice] / 10).toFixed(odds[choice] < 100 ? 1 : 0)} %`));
        }
        body.append(line);
      }
      return table;
    }

    // Text only ever enters as text nodes.
    function write(target, text, offensive) {
      target.dir = "auto";
      if (text === undefined || text === null) return;
      if (offensive && !revealed) { target.classList.add("veiled"); target.textContent = "hidden"; return; }
      const query = control.query.value.trim();
      let from = 0;
      const low = text.toLowerCase();
      if (query && low.length === text.length) {
        for (let hit; (hit = low.indexOf(query.toLowerCase(), from)) >= 0; from = hit + query.length) {
          target.append(text.slice(from, hit), element("mark", "", text.slice(hit, hit + query.length)));
        }
      }
      target.append(text.slice(from));
    }

    function element(kind, name, text) {
      const made = document.createElement(kind);
      if (name) made.className = name.trim();
      if (text !== undefined) made.textContent = text;
      return made;
    }

    // Decoding waits until the items come near, or a link leads to a filter.
    const watcher = new IntersectionObserver((entries) => { if (entries.some((each) => each.isIntersecting)) begin(); }, { rootMargin: "600px" });
    watcher.observe(section);
    if (location.hash.startsWith("#items?")) begin().then(() => section.scrollIntoView());
    addEventListener("hashchange", () => { if (location.hash.startsWith("#items?")) begin().then(() => { restore(); section.scrollIntoView(); }); });
  }
})();
