// Tabs, sorting and filtering; without it the page shows everything, unsorted.

for (const group of document.querySelectorAll("[data-tabs]")) {
  const panels = [...group.querySelectorAll(":scope > [data-tab]")];
  if (panels.length < 2) continue;
  const bar = document.createElement("div");
  bar.className = "tabs";
  const select = (chosen) => {
    for (const panel of panels) panel.hidden = panel !== chosen;
    for (const button of bar.children) button.setAttribute("aria-selected", button.textContent === chosen.dataset.tab);
  };
  for (const panel of panels) {
    const button = document.createElement("button");
    button.textContent = panel.dataset.tab;
    button.onclick = () => select(panel);
    bar.append(button);
  }
  group.prepend(bar);
  select(panels[0]);
}

const valueOf = (cell) => (cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v));

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.onclick = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      const compare = (a, b) => {
        const [x, y] = [valueOf(a.cells[column]), valueOf(b.cells[column])];
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // what has no number comes last
        return (up ? 1 : -1) * (typeof x === "number" ? x - y : x.localeCompare(y));
      };
      table.tBodies[0].append(...rows.sort(compare));
    };
  });
}

for (const form of document.querySelectorAll(".filters")) {
  const rows = [...document.getElementById(form.dataset.for).tBodies[0].rows];
  form.oninput = () => {
    const words = form.querySelector("input").value.toLowerCase().split(/\s+/);
    const wanted = [...form.querySelectorAll("select")].filter((s) => s.value).map((s) => [Number(s.dataset.column), s.value]);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word));
      row.hidden = !fits || !wanted.every(([column, value]) => row.cells[column].textContent === value);
    }
  };
}
